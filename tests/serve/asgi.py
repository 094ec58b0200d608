# SPDX-License-Identifier: Apache-2.0
"""A client that calls an ASGI application without a network."""

import asyncio
import contextlib
import json


class Answer:
  """Status, headers and body of an answer."""

  def __init__(self):
    self.status, self.headers, self.body = 0, {}, b''

  @property
  def json(self):
    """The body, decoded from JSON."""
    return json.loads(self.body)

  @property
  def error(self):
    """The sentence of an error."""
    return self.json['error']['message']

  @property
  def events(self):
    """The data of server-sent events, the last of which is not JSON."""
    *events, done, after_last = self.body.decode().split('\n\n')
    assert (done, after_last) == ('data: [DONE]', '')
    return [json.loads(event.removeprefix('data: ')) for event in events]


@contextlib.asynccontextmanager
async def running(app):
  """Starts an application, and ends it."""
  received, sent = asyncio.Queue(), asyncio.Queue()
  task = asyncio.create_task(
    app(
      {'type': 'lifespan', 'asgi': {'version': '3.0'}}, received.get, sent.put
    )
  )
  await received.put({'type': 'lifespan.startup'})
  assert (await sent.get())['type'] == 'lifespan.startup.complete'
  try:
    yield
  finally:
    await received.put({'type': 'lifespan.shutdown'})
    assert (await sent.get())['type'] == 'lifespan.shutdown.complete'
    await task


async def request(
  app,
  method,
  path,
  *,
  body: object = b'',
  headers=(),
  disconnect_event=None,
  body_end=None,
):
  """Sends a request.

  Args:
    app: the application.
    method: such as `'GET'`.
    path: path of the URL.
    body: bytes, or an object that is sent as JSON.
    headers: pairs that replace the usual ones.
    disconnect_event: an event at which the client disconnects.
    body_end: an event at which the body ends; at once without it.
  """
  data = body if isinstance(body, bytes) else json.dumps(body).encode()
  usual_headers = {'host': 'localhost:8000', 'content-type': 'application/json'}
  all_headers = {**usual_headers, **dict(headers)}.items()
  answer, has_body = Answer(), asyncio.Event()
  has_disconnected = disconnect_event or asyncio.Event()

  async def receive():
    if not has_body.is_set():
      has_body.set()
      has_more = body_end is not None
      return {'type': 'http.request', 'body': data, 'more_body': has_more}
    if body_end is not None:
      await body_end.wait()
      return {'type': 'http.request', 'body': b'', 'more_body': False}
    await has_disconnected.wait()
    return {'type': 'http.disconnect'}

  async def send(message):
    if has_disconnected.is_set():
      raise OSError('the client has disconnected')
    if message['type'] == 'http.response.start':
      answer.status = message['status']
      answer.headers = {k.decode(): v.decode() for k, v in message['headers']}
    else:
      answer.body += message.get('body', b'')

  scope = {
    'type': 'http',
    'asgi': {'version': '3.0', 'spec_version': '2.4'},
    'http_version': '1.1',
    'method': method,
    'path': path,
    'raw_path': path.encode(),
    'query_string': b'',
    'root_path': '',
    'scheme': 'http',
    'headers': [(k.encode(), v.encode()) for k, v in all_headers],
  }
  await app(scope, receive, send)
  return answer


async def complete(app, *, disconnect_event=None, **fields):
  """Sends a completion request."""
  return await request(
    app,
    'POST',
    '/v1/completions',
    body=fields,
    disconnect_event=disconnect_event,
  )
