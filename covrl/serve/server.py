# SPDX-License-Identifier: Apache-2.0
"""Runs the HTTP server of a sampling engine: address, bearer token, signals."""

from __future__ import annotations

import asyncio
import pathlib
import socket
import sys
from typing import NamedTuple

import uvicorn

from covrl.data import Tokenizer
from covrl.rollout import RequestEngine
from covrl.serve.app import is_loopback, make_app
from covrl.serve.metrics import Metrics
from covrl.serve.worker import Worker

_MIN_BEARER_TOKEN_LENGTH = 16


class Address(NamedTuple):
  """Host and port to listen on."""

  host: str
  port: int

  def check(self, token: str | None) -> None:
    """Checks the port, and that other machines need a bearer token.

    Raises:
      ValueError: there is no bearer token for an address other than loopback, or the
        port is out of range.
    """
    if not 0 <= self.port < 2**16:
      raise ValueError(f'--port must lie in [0, 65536), got {self.port}')
    if token is None and not is_loopback(self.host):
      raise ValueError(
        f'--token_file must be given with --host={self.host}, which others can'
        ' reach, got none; without a token the host must be a loopback address'
      )


def read_token(file: str | None) -> str | None:
  """Reads a bearer token from a file.

  Raises:
    ValueError: the file cannot be read, or is not one line of at least 16
      printable ASCII characters without spaces.
  """
  if file is None:
    return None
  try:
    token = pathlib.Path(file).read_text('ascii').strip()
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(f'--token_file must be a text file, got {error}') from None
  if (
    len(token) < _MIN_BEARER_TOKEN_LENGTH
    or not token.isprintable()
    or ' ' in token
  ):
    raise ValueError(
      f'{file} must have one line of at least {_MIN_BEARER_TOKEN_LENGTH} printable'
      f' characters without spaces, got {len(token)} characters'
    )
  return token


class _Server(uvicorn.Server):
  """Server that prints when it listens, and answers pending requests at its end."""

  def __init__(self, worker: Worker, config: uvicorn.Config) -> None:
    super().__init__(config)
    self._worker = worker

  async def startup(self, sockets: list[socket.socket] | None = None) -> None:
    """Listens, and prints the addresses."""
    await super().startup(sockets)
    for listener in sockets or ():
      host, port = listener.getsockname()[:2]
      name = f'[{host}]' if ':' in host else host
      print(f'listening on http://{name}:{port}', file=sys.stderr, flush=True)

  async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
    """Ends the engine first, so that no client waits for it."""
    await asyncio.to_thread(self._worker.stop)
    await super().shutdown(sockets)


def serve(
  engine: RequestEngine,
  tokenizer: Tokenizer,
  listener: socket.socket,
  *,
  token: str | None,
  model: str,
  max_waiting: int,
) -> None:
  """Serves until a signal ends it, or the engine fails.

  Args:
    engine: samples the responses.
    tokenizer: the policy's tokenizer.
    listener: the socket, see `open_socket`.
    token: bearer token, see `make_app`.
    model: name of the model in requests.
    max_waiting: see `Worker`.

  Raises:
    BaseException: the error of the engine.
  """
  metrics, failures = Metrics(), list[BaseException]()

  def on_failure(error: BaseException) -> None:
    """Records an error of the engine, and ends the server."""
    failures.append(error)
    server.should_exit = True

  worker = Worker(
    engine,
    tokenizer,
    max_waiting=max_waiting,
    metrics=metrics,
    on_failure=on_failure,
  )
  app = make_app(worker, tokenizer, metrics, model=model, token=token)
  server = _Server(
    worker,
    uvicorn.Config(
      app,
      log_level='warning',
      access_log=False,
      server_header=False,
      timeout_graceful_shutdown=5,
    ),
  )
  server.run([listener])
  if failures:
    raise failures[0]


def open_socket(address: Address) -> socket.socket:
  """Binds a socket, which `serve` listens on.

  Until then clients are refused, and no other server gets the address.

  Raises:
    ValueError: the address is not this machine's, or is in use.
  """
  family = socket.AF_INET6 if ':' in address.host else socket.AF_INET
  listener = socket.socket(family, socket.SOCK_STREAM)
  try:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
      listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.bind(tuple(address))
  except OSError as error:
    listener.close()
    raise ValueError(
      f'--host and --port must be an address to listen on, got {address.host}'
      f' and {address.port}: {error}'
    ) from None
  return listener
