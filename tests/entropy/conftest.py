# SPDX-License-Identifier: Apache-2.0
"""Meshes to compile for: a TPU pod that need not be there, and fake devices."""

import contextlib
import math
import os

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh


@pytest.fixture(scope='module')
def pod():
  """The devices of a v5p 4×4×4 slice, as 16 × 4."""
  pytest.importorskip('libtpu')
  os.environ.update(
    TPU_SKIP_MDS_QUERY='1',
    TPU_WORKER_HOSTNAMES='localhost',
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',
  )
  devices = topologies.get_topology_desc('v5p:4x4x4', 'tpu').devices
  # A program for chips that are not there could be kept, but not be read again.
  with kept_from_cache():
    yield Mesh(np.array(devices).reshape(16, 4), ('data', 'sequence'))


@contextlib.contextmanager
def kept_from_cache():
  option = 'jax_persistent_cache_min_compile_time_secs'
  before = getattr(jax.config, option)
  jax.config.update(option, math.inf)
  yield
  jax.config.update(option, before)


@pytest.fixture(scope='module')
def fake():
  """Eight devices of the CPU, as 4 × 2."""
  return Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ('data', 'sequence'))
