# SPDX-License-Identifier: Apache-2.0
"""Events of this machine that Google Cloud announces: maintenance, preemption."""

from __future__ import annotations

import contextlib
import os
import pathlib
import urllib.request
from collections.abc import Callable, Iterator

from covrl.run.background import repeated_in_thread

# Values of the metadata server while nothing is announced.
_NOTHING_ANNOUNCED = {'maintenance-event': 'NONE', 'preempted': 'FALSE'}
_HOST = 'metadata.google.internal'


@contextlib.contextmanager
def watch_events(
  on_event: Callable[[], None], *, interval: float = 5.0
) -> Iterator[None]:
  """Polls the metadata server in a thread; elsewhere does nothing.

  An event that is announced already is not reported: maintenance is announced up to
  an hour before, in which a run that is started again would stop at once.

  Args:
    on_event: called once, from the thread, at the first event.
    interval: seconds between two requests.
  """
  if not has_metadata_server():
    yield
    return

  known = {name for name in _NOTHING_ANNOUNCED if is_announced(name)}

  def report_event() -> bool:
    announced = {name for name in _NOTHING_ANNOUNCED if is_announced(name)}
    is_any = bool(announced - known)
    known.intersection_update(announced)
    if is_any:
      on_event()
    return is_any

  with repeated_in_thread(report_event, interval=interval, name='maintenance'):
    yield


def has_metadata_server() -> bool:
  """Returns whether this machine is on Google Cloud."""
  product = pathlib.Path('/sys/class/dmi/id/product_name')
  with contextlib.suppress(OSError):
    if product.read_text(encoding='utf-8').startswith('Google'):
      return True
  return 'GCE_METADATA_HOST' in os.environ


def is_announced(name: str) -> bool:
  """Returns whether the metadata server announces an event.

  Args:
    name: `'maintenance-event'` or `'preempted'`.
  """
  host = os.environ.get('GCE_METADATA_HOST', _HOST)
  request = urllib.request.Request(
    f'http://{host}/computeMetadata/v1/instance/{name}',
    headers={'Metadata-Flavor': 'Google'},
  )
  # Not by a proxy, which cannot reach the server of this machine.
  opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
  try:
    with opener.open(request, timeout=5.0) as response:
      value = response.read(100).decode(errors='replace').strip()
  except (OSError, ValueError):
    # A server that does not respond announces nothing.
    return False
  return value.upper() != _NOTHING_ANNOUNCED[name]
