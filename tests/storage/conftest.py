# SPDX-License-Identifier: Apache-2.0
"""An emulated bucket for the tests of storage."""

import pytest
from bucket import serve_bucket

from covrl import storage


@pytest.fixture(scope='session')
def bucket_server():
  """Serves one bucket to all tests of a process: gcsfs keeps its first endpoint."""
  with serve_bucket() as (bucket, environment):
    yield bucket, environment


@pytest.fixture
def bucket(bucket_server):
  """Yields the emulated bucket `gs://bucket`, which is empty at first."""
  bucket, environment = bucket_server
  with pytest.MonkeyPatch.context() as patch:
    for name, value in environment.items():
      patch.setenv(name, value)
    storage.as_path('gs://bucket/run')
    bucket.objects.clear()
    yield bucket
