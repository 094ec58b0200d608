# SPDX-License-Identifier: Apache-2.0
"""Notices of Google's cloud that a machine will be maintained or preempted."""

from __future__ import annotations

import contextlib
import os
import pathlib
import threading
import urllib.request
from collections.abc import Callable, Iterator

# What the metadata server says when nothing is going to happen.
_CALM = {'maintenance-event': 'NONE', 'preempted': 'FALSE'}
_HOST = 'metadata.google.internal'


@contextlib.contextmanager
def watched(
  tell: Callable[[], None], *, interval: float = 5.0
) -> Iterator[None]:
  """Calls `tell` once a notice is there, on Google's machines.

  Args:
    tell: what is to be told.
    interval: seconds between looks.
  """
  if not is_google():
    yield
    return
  over = threading.Event()

  def watch() -> None:
    while not over.wait(interval):
      if any(is_notice(name) for name in _CALM):
        tell()
        return

  thread = threading.Thread(target=watch, name='notices', daemon=True)
  thread.start()
  try:
    yield
  finally:
    over.set()


def is_google() -> bool:
  """Whether there is a metadata server to ask."""
  product = pathlib.Path('/sys/class/dmi/id/product_name')
  with contextlib.suppress(OSError):
    if product.read_text().startswith('Google'):
      return True
  return 'GCE_METADATA_HOST' in os.environ


def is_notice(name: str) -> bool:
  """Whether the metadata server announces the end of this machine."""
  host = os.environ.get('GCE_METADATA_HOST', _HOST)
  request = urllib.request.Request(
    f'http://{host}/computeMetadata/v1/instance/{name}',
    headers={'Metadata-Flavor': 'Google'},
  )
  try:
    with urllib.request.urlopen(request, timeout=5.0) as answer:
      said = answer.read(100).decode(errors='replace').strip()
  except (OSError, ValueError):
    # It does not answer: that is no notice.
    return False
  return said.upper() != _CALM[name]
