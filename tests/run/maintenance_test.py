# SPDX-License-Identifier: Apache-2.0
"""Notices of maintenance and preemption that Google Cloud announces."""

import http.server
import threading
import typing

import pytest

from covrl.run import maintenance


class Metadata(http.server.BaseHTTPRequestHandler):
  """Replaces Google's metadata server."""

  values: typing.ClassVar = {'maintenance-event': 'NONE', 'preempted': 'FALSE'}

  def do_GET(self):
    assert self.headers['Metadata-Flavor'] == 'Google'
    self.send_response(200)
    self.end_headers()
    self.wfile.write(self.values[self.path.rpartition('/')[2]].encode())

  def log_message(self, format, *arguments):
    pass


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('maintenance-event', 'TERMINATE_ON_HOST_MAINTENANCE'),
    ('preempted', 'TRUE'),
  ],
)
def test_reports_maintenance_and_preemption_notices(monkeypatch, name, value):
  monkeypatch.setattr(Metadata, 'values', dict(Metadata.values))
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Metadata) as server:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv('GCE_METADATA_HOST', f'127.0.0.1:{server.server_port}')
    noticed = threading.Event()
    # Not by a proxy.
    monkeypatch.setenv('http_proxy', 'http://127.0.0.1:9')
    with maintenance.watch_events(noticed.set, interval=0.01):
      assert not noticed.wait(0.2)
      Metadata.values[name] = value
      assert noticed.wait(10)
    # A run that is started then goes on, until the next event.
    noticed.clear()
    with maintenance.watch_events(noticed.set, interval=0.01):
      assert not noticed.wait(0.2)
      Metadata.values[name] = dict(maintenance._NOTHING_ANNOUNCED)[name]
      assert not noticed.wait(0.2)
      Metadata.values[name] = value
      assert noticed.wait(10)
    server.shutdown()
    thread.join()
  assert not maintenance.is_announced(name)
