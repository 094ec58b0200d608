# SPDX-License-Identifier: Apache-2.0
"""Many processes as one program.

Every process runs the same code on the same mesh. Each reads and tokenises its
own prompts and scores its own responses; what all of them need is exchanged by
`gather_rows`, `run` and `fetch`, which give every process the whole on the host. Of
what is written, process 0 writes it.

No wait here blocks the main thread for good: each asks `polled`'s function
again and again, which may raise.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib.util
import json
import math
import os
import pathlib
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

HEARTBEAT = 100
"""Seconds after which a silent process counts as lost."""

_INITIALIZATION = 300
# Leaving, the first process may have a report to write; that all are alive is
# known by their heartbeats.
_SHUTDOWN = 600
_INTERVAL = 0.005

_LOSS = re.compile(
  r'Gloo|NCCL|[Cc]oordination ?[Ss]ervice|heartbeat|Socket closed|'
  r'Connection (closed|reset|refused)|UNAVAILABLE|DEADLINE_EXCEEDED'
)

Result = TypeVar('Result')


def _nothing() -> None:
  """What nobody asked for."""


_poll: Callable[[], None] = _nothing
_moved: Callable[[], None] = _nothing


def join(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  heartbeat: int = HEARTBEAT,
) -> None:
  """Makes this process one of a program's, where there are several.

  On a TPU slice, in GKE and under Slurm addresses are found by JAX; elsewhere
  all three must be given.

  Args:
    coordinator: `HOST:PORT` of process 0.
    num_processes: how many there are.
    process_id: which one this is.
    heartbeat: seconds after which a silent process counts as lost.

  Raises:
    ValueError: some of the three are missing or contradict one another.
    RuntimeError: the others cannot be reached; says where they were sought.
  """
  given = (coordinator, num_processes, process_id)
  if any(each is not None for each in given):
    if None in given:
      raise ValueError(
        '--coordinator, --num_processes and --process_id are required together,'
        f' got {coordinator!r}, {num_processes} and {process_id}'
      )
    assert num_processes is not None
    assert process_id is not None
    assert coordinator is not None
    if not 0 <= process_id < num_processes:
      raise ValueError(
        f'--process_id must lie in [0, {num_processes}), got {process_id}'
      )
    if not coordinator.rpartition(':')[2].isdigit():
      raise ValueError(f'--coordinator must be HOST:PORT, got {coordinator!r}')
    if num_processes == 1:
      return
  elif not in_cluster():
    return
  if heartbeat < 2:
    raise ValueError(f'--heartbeat must be at least 2 s, got {heartbeat}')
  # The devices of a CPU have no network of their own. What is exchanged there
  # is told apart by its order only, so programs run one after the other.
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.config.update('jax_cpu_enable_async_dispatch', False)
  try:
    jax.distributed.initialize(
      coordinator,
      num_processes,
      process_id,
      initialization_timeout=_INITIALIZATION,
      heartbeat_timeout_seconds=heartbeat,
      shutdown_timeout_seconds=_SHUTDOWN,
    )
  except Exception as error:
    first = str(error).strip().partition('\n')[0]
    raise RuntimeError(
      'the other processes cannot be reached '
      f'({coordinator or "addresses found by JAX"}): {first}'
    ) from error


def in_cluster() -> bool:
  """Whether the environment says that other processes run this program too."""
  environment = os.environ
  hosts = [
    h for h in environment.get('TPU_WORKER_HOSTNAMES', '').split(',') if h
  ]
  if int(environment.get('MEGASCALE_NUM_SLICES', '1')) > 1:
    return True
  if hosts:
    return len(hosts) > 1
  if int(environment.get('OMPI_COMM_WORLD_SIZE', '1')) > 1:
    return True
  if 'SLURM_STEP_NODELIST' in environment:
    return int(environment.get('SLURM_NTASKS', '1')) > 1
  return _is_tpu_machine()


def count() -> int:
  """How many processes there are."""
  return jax.process_count()


def is_first() -> bool:
  """Whether this process writes what only one may write."""
  return jax.process_index() == 0


@contextlib.contextmanager
def polled(
  poll: Callable[[], None], moved: Callable[[], None] = _nothing
) -> Iterator[None]:
  """Has all waits of this module call `poll`, and `moved` when they end."""
  global _poll, _moved
  before, (_poll, _moved) = (_poll, _moved), (poll, moved)
  try:
    yield
  finally:
    _poll, _moved = before


def wait(ready: Callable[[], bool]) -> None:
  """Waits until something is so, and polls meanwhile."""
  while not ready():
    _poll()
    time.sleep(_INTERVAL)
  _moved()


def result(future: Future[Result]) -> Result:
  """What a future gives."""
  wait(future.done)
  return future.result()


def run(program: Callable[..., PyTree], *args: Any, **kwargs: Any) -> PyTree:
  """Calls a program of the devices; its results as host arrays, whole ones."""
  if count() == 1:
    results = program(*args, **kwargs)
    arrays: list[Any] = jax.tree.leaves(results)
    wait(lambda: all(array.is_ready() for array in arrays))
    return jax.device_get(results)
  return result(
    _aside(lambda: jax.device_get(_everywhere(program(*args, **kwargs))))
  )


def fetch(tree: PyTree) -> PyTree:
  """Device arrays as host arrays, whole ones on every process."""
  return run(lambda: tree)


def gather_rows(tree: PyTree) -> PyTree:
  """Rows of all processes, in the order of the processes.

  Args:
    tree: host arrays `[R, ...]`, of the same shapes on every process.
  """
  processes = count()
  if processes == 1:
    return tree
  owners: dict[int, Any] = {}
  for device in jax.devices():
    owners.setdefault(device.process_index, device)
  mesh = Mesh(
    np.array([owners[process] for process in range(processes)]), ('p',)
  )
  split = NamedSharding(mesh, PartitionSpec('p'))

  def place(leaf: np.ndarray) -> jax.Array:
    shape = (leaf.shape[0] * processes, *leaf.shape[1:])
    return jax.make_array_from_process_local_data(split, leaf, shape)

  return fetch(jax.tree.map(lambda leaf: place(np.asarray(leaf)), tree))


def own_share(size: int) -> slice:
  """Which of so many things are this process's; the last may have fewer."""
  share = math.ceil(size / count())
  return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def gather_objects(content: Any) -> list[Any]:
  """What each process has, by its number.

  Args:
    content: plain JSON; NaN is allowed.
  """
  text = np.frombuffer(json.dumps(content).encode(), np.uint8)
  sizes = gather_rows(np.array([text.size], np.int32))
  # Few sizes, so that few programs are compiled to move them.
  padded = np.zeros((1, 1 << int(sizes.max()).bit_length()), np.uint8)
  padded[0, : text.size] = text
  rows = gather_rows(padded)
  return [
    json.loads(row[:size].tobytes())
    for row, size in zip(rows, sizes, strict=True)
  ]


def meet(name: str, *, timeout: int = 600) -> None:
  """Waits until all processes are here, without their devices.

  Args:
    name: of the place, met at once only.
    timeout: seconds.
  """
  if count() > 1:
    from orbax.checkpoint import multihost

    multihost.get_jax_distributed_client().wait_at_barrier(name, timeout * 1000)


def is_loss(error: BaseException) -> bool:
  """Whether an error, or what caused it, says that another process is gone."""
  if count() == 1:
    return False
  cause: BaseException | None = error
  while cause is not None:
    if _LOSS.search(str(cause)):
      return True
    cause = cause.__cause__
  return False


def leave(status: int, *, orderly: bool) -> NoReturn:
  """Ends this process of several, whatever its devices still wait for.

  Args:
    status: its exit status.
    orderly: whether all of them are leaving.
  """
  if orderly:
    with contextlib.suppress(Exception):
      jax.distributed.shutdown()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def place(array: np.ndarray | jax.Array, sharding: NamedSharding) -> jax.Array:
  """Puts a host array that every process has whole on all devices.

  Each process places what its own devices hold, without asking the others.
  """
  if sharding.is_fully_addressable:
    return jax.device_put(array, sharding)
  whole = np.asarray(array)
  return jax.make_array_from_callback(
    whole.shape, sharding, lambda index: whole[index]
  )


def _identity(x: PyTree) -> PyTree:
  return x


def _everywhere(tree: PyTree) -> PyTree:
  """The whole on every device; by one program, in which gathers have an order."""

  def everywhere(leaf: jax.Array) -> jax.sharding.Sharding:
    if leaf.is_fully_addressable or leaf.is_fully_replicated:
      return leaf.sharding
    assert isinstance(leaf.sharding, NamedSharding)
    return NamedSharding(leaf.sharding.mesh, PartitionSpec())

  before = jax.tree.map(lambda leaf: leaf.sharding, tree)
  shardings = jax.tree.map(everywhere, tree)
  if shardings == before:
    return tree
  return jax.jit(_identity, out_shardings=shardings)(tree)


def _aside(work: Callable[[], Result]) -> Future[Result]:
  """Begins work that may never end, in a thread that does not keep a process.

  Another process may have given up what this one still expects.
  """
  context, future = contextvars.copy_context(), Future[Result]()

  def begin() -> None:
    try:
      future.set_result(context.run(work))
    except BaseException as error:
      future.set_exception(error)

  threading.Thread(target=begin, name='exchange', daemon=True).start()
  return future


def _is_tpu_machine() -> bool:
  """Whether TPUs are attached; their metadata server knows of the others."""
  devices = pathlib.Path('/dev')
  attached = (*devices.glob('accel*'), *devices.glob('vfio/[0-9]*'))
  return bool(attached) and importlib.util.find_spec('libtpu') is not None
