# SPDX-License-Identifier: Apache-2.0
"""HTTP interface of the server: OpenAI's completions, models, health, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import time
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import (
  JSONResponse,
  PlainTextResponse,
  Response,
  StreamingResponse,
)
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from covrl.data import Tokenizer
from covrl.data.json_text import parse_json
from covrl.serve.answer import Answer, Updates
from covrl.serve.fields import (
  DEFAULT_TOKENS,
  Completion,
  parse_completion,
)
from covrl.serve.metrics import CONTENT_TYPE, Metrics
from covrl.serve.text import Delta, NotFiniteError
from covrl.serve.worker import (
  QueueFullError,
  Submission,
  Worker,
  WorkerStoppedError,
)

MAX_BODY_BYTES = 8 * 2**20
BODY_SECONDS = 60.0
"""Seconds in which the body of a request must arrive."""
# Seconds after which a refused client may try again.
_RETRY_AFTER = '1'
# Characters of an error message.
_MAX_MESSAGE = 1000
_ERROR_TYPES = {
  401: 'authentication_error',
  403: 'permission_error',
  404: 'not_found_error',
  429: 'rate_limit_error',
}


def make_app(
  worker: Worker,
  tokenizer: Tokenizer,
  metrics: Metrics,
  *,
  model: str,
  token: str | None = None,
) -> Starlette:
  """Returns the application.

  Args:
    worker: runs the engine; it is started and stopped with the application.
    tokenizer: the policy's tokenizer.
    metrics: metrics that `/metrics` returns.
    model: name of the served model.
    token: token of the header `Authorization: Bearer TOKEN` of requests; without
      one, only requests to a loopback name are answered, so that pages in a
      browser cannot reach the server under a name of their own.
  """
  server = _Server(worker, tokenizer, metrics, model, token)

  @contextlib.asynccontextmanager
  async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Runs the worker while the application runs."""
    worker.start()
    try:
      yield
    finally:
      await asyncio.to_thread(worker.stop)

  return Starlette(
    routes=[
      Route('/v1/completions', server.guard(server.complete), methods=['POST']),
      Route('/v1/models', server.guard(server.models)),
      Route('/metrics', server.guard(server.show_metrics)),
      Route('/health', server.health),
    ],
    exception_handlers={HTTPException: server.on_http_error},
    lifespan=lifespan,
  )


class _Server:
  """The handlers of the routes."""

  def __init__(
    self,
    worker: Worker,
    tokenizer: Tokenizer,
    metrics: Metrics,
    model: str,
    token: str | None,
  ) -> None:
    self._worker, self._tokenizer = worker, tokenizer
    self._metrics, self._model, self._token = metrics, model, token
    self._created = int(time.time())

  def guard(
    self, handler: Callable[[Request], Awaitable[Response]]
  ) -> Callable[[Request], Awaitable[Response]]:
    """Returns a handler that requires the token or, without one, a loopback name."""

    async def guarded(request: Request) -> Response:
      """Handles a request, or refuses it."""
      if self._token is None:
        host = request.headers.get('host', '')
        if not is_loopback(_host_name(host)):
          return self._error(
            403, f'the host must be a loopback name, got {host[:100]!r}'
          )
      else:
        scheme, _, token = request.headers.get('authorization', '').partition(
          ' '
        )
        is_token = hmac.compare_digest(
          token.strip().encode(), self._token.encode()
        )
        # HTTP compares names of schemes without case (RFC 9110, section 11.1).
        if scheme.lower() != 'bearer' or not is_token:
          return self._error(
            401,
            'Authorization must be the bearer token of the server, got another',
          )
      return await handler(request)

    return guarded

  async def complete(self, request: Request) -> Response:
    """Answers a completion request."""
    try:
      fields = await _read_json(request)
      # Tokenisation of long prompts would hold up the other clients.
      completion = await asyncio.to_thread(
        parse_completion,
        fields,
        self._tokenizer,
        max_tokens=min(
          DEFAULT_TOKENS, self._worker.engine.limits.response_length
        ),
      )
    except _RefusedBodyError as error:
      return self._error(error.status, str(error))
    except ValueError as error:
      return self._error(400, str(error))
    if completion.model not in (None, self._model):
      return self._error(
        404, f'model must be {self._model!r}, got {completion.model!r}'
      )
    updates: Updates = asyncio.Queue()
    try:
      submission = self._submit(completion, updates)
    except ValueError as error:
      return self._error(400, str(error))
    except QueueFullError as error:
      return self._error(429, str(error))
    except WorkerStoppedError as error:
      return self._error(503, str(error))
    answer = Answer(completion, self._tokenizer, self._model)
    if completion.stream:
      self._count(200)
      return _EventStream(
        self._events(answer, updates), lambda: self._worker.cancel(submission)
      )
    return await self._wait_for_answer(request, answer, submission, updates)

  def _submit(self, completion: Completion, updates: Updates) -> Submission:
    """Submits the requests; their deltas are put into `updates`."""
    loop = asyncio.get_running_loop()

    def on_delta(index: int, delta: Delta | Exception) -> None:
      """Puts an update into the queue, from the thread of the worker."""
      # The loop is closed if the server ends before the engine.
      with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(updates.put_nowait, (index, delta))

    return self._worker.submit(completion.requests, completion.stop, on_delta)

  async def _wait_for_answer(
    self,
    request: Request,
    answer: Answer,
    submission: Submission,
    updates: Updates,
  ) -> Response:
    """Waits for all choices, or for the client to disconnect."""
    finished = asyncio.ensure_future(answer.finish(updates))
    disconnected = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
      await asyncio.wait(
        (finished, disconnected), return_when=asyncio.FIRST_COMPLETED
      )
      if not finished.done():
        # This response reaches no client; its status is counted in the metrics.
        return self._error(499, 'the client has disconnected')
      await finished
    except WorkerStoppedError as error:
      return self._error(503, str(error))
    except NotFiniteError as error:
      return self._error(500, str(error))
    finally:
      finished.cancel()
      disconnected.cancel()
      self._worker.cancel(submission)
    self._count(200)
    return JSONResponse(answer.body())

  async def _events(
    self, answer: Answer, updates: Updates
  ) -> AsyncIterator[str]:
    """Yields server-sent events."""
    while not answer.is_finished:
      index, delta = await updates.get()
      if isinstance(delta, Exception):
        status = 500 if isinstance(delta, NotFiniteError) else 503
        yield _event(_error_body(status, str(delta)))
        return
      yield _event(answer.chunk([answer.add(index, delta)]))
    if answer.completion.include_usage:
      yield _event(answer.chunk([], usage=True))
    yield 'data: [DONE]\n\n'

  async def models(self, request: Request) -> Response:
    """Lists the model."""
    entry = {
      'id': self._model,
      'object': 'model',
      'created': self._created,
      'owned_by': 'covrl',
      'max_prompt_tokens': self._worker.engine.limits.prompt_length,
      'max_tokens': self._worker.engine.limits.response_length,
    }
    return JSONResponse({'object': 'list', 'data': [entry]})

  async def show_metrics(self, request: Request) -> Response:
    """Shows the metrics."""
    return PlainTextResponse(self._metrics.render(), media_type=CONTENT_TYPE)

  async def health(self, request: Request) -> Response:
    """Shows whether requests are accepted."""
    status = 200 if self._worker.is_running else 503
    return PlainTextResponse(
      'ok\n' if status == 200 else 'the engine has ended\n', status
    )

  async def on_http_error(self, request: Request, error: Exception) -> Response:
    """Answers unknown paths and methods."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    allowed = '/v1/completions, /v1/models, /metrics and /health'
    return self._error(
      status,
      f'requests must be to {allowed}, got {request.method} {request.url.path}',
    )

  def _error(self, status: int, message: str) -> Response:
    """Returns an error response, and counts it."""
    self._count(status)
    headers = {'Retry-After': _RETRY_AFTER} if status == 429 else None
    if status == 401:
      headers = {'WWW-Authenticate': 'Bearer'}
    return JSONResponse(_error_body(status, message), status, headers)

  def _count(self, status: int) -> None:
    """Counts a response by its status."""
    self._metrics.add('requests_total', label=f'status="{status}"')


class _EventStream(StreamingResponse):
  """Server-sent events; `on_end` is called after the last, or a disconnect."""

  def __init__(
    self, events: AsyncIterator[str], on_end: Callable[[], None]
  ) -> None:
    super().__init__(events, media_type='text/event-stream')
    self._on_end = on_end

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    try:
      await super().__call__(scope, receive, send)
    finally:
      self._on_end()


class _RefusedBodyError(ValueError):
  """Error of a request whose body is not read."""

  def __init__(self, status: int, message: str) -> None:
    super().__init__(message)
    self.status = status


async def _read_json(request: Request) -> object:
  """Reads the body of a request.

  Only `application/json` is read: pages in a browser cannot send it to another
  host without a preflight request.
  """
  content_type = (
    request.headers.get('content-type', '').partition(';')[0].strip()
  )
  if content_type.lower() != 'application/json':
    raise _RefusedBodyError(
      415,
      f'the content type must be application/json, got {content_type[:100]!r}',
    )
  body = bytearray()
  try:
    async with asyncio.timeout(BODY_SECONDS):
      async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
          raise _RefusedBodyError(
            413, f'a request must have at most {MAX_BODY_BYTES} bytes, got more'
          )
  except ClientDisconnect:
    raise _RefusedBodyError(499, 'the client has disconnected') from None
  except TimeoutError:
    raise _RefusedBodyError(
      408,
      f'a request must arrive within {BODY_SECONDS:g} s, got {len(body)} bytes',
    ) from None
  except asyncio.CancelledError:
    # The server does not wait for slow clients when it shuts down.
    raise _RefusedBodyError(503, 'the server is shutting down') from None
  return parse_json(body, 'a request')


async def _wait_for_disconnect(request: Request) -> None:
  """Waits until the client has disconnected."""
  while (await request.receive())['type'] != 'http.disconnect':
    pass


def is_loopback(host: str) -> bool:
  """Returns whether a host name or address is a loopback one.

  >>> is_loopback('localhost'), is_loopback('::1'), is_loopback('0.0.0.0')
  (True, True, False)
  """
  if host.lower() == 'localhost':
    return True
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return False


def _host_name(header: str) -> str:
  """Returns the name in a `Host` header, without the port."""
  try:
    return urllib.parse.urlsplit(f'//{header}').hostname or ''
  except ValueError:
    return ''


def _event(body: dict[str, Any]) -> str:
  """Formats a server-sent event."""
  text = json.dumps(body, ensure_ascii=False, separators=(',', ':'))
  return f'data: {text}\n\n'


def _error_body(status: int, message: str) -> dict[str, Any]:
  """Returns the body of an error, whose message is cut to `_MAX_MESSAGE`."""
  if len(message) > _MAX_MESSAGE:
    message = f'{message[: _MAX_MESSAGE - 1]}…'
  error_type = 'server_error' if status >= 500 else 'invalid_request_error'
  error_type = _ERROR_TYPES.get(status, error_type)
  return {
    'error': {
      'message': message,
      'type': error_type,
      'param': None,
      'code': status,
    }
  }
