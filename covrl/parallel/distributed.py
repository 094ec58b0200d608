# SPDX-License-Identifier: Apache-2.0
"""Multi-process start-up and data exchange.

Every process runs the same program on the same mesh. Each reads and tokenizes
its own prompts and scores its own responses; `gather_rows`, `run_on_devices`
and `fetch` exchange data and return whole host arrays on every process. Only
process 0 writes files.

No wait in this module blocks the main thread for ever: each calls the function
installed by `polling` at short intervals, which may raise.
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
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

HEARTBEAT_TIMEOUT = 100
"""Seconds without a heartbeat after which a process counts as lost."""

# Seconds until all processes have to be connected.
_INITIALIZATION_SECONDS = 300
# Seconds: process 0 may still write a report while the others wait at the shutdown
# barrier; heartbeats detect a process that died meanwhile.
_SHUTDOWN_SECONDS = 600
# Bounds of the seconds between polls.
_MIN_INTERVAL, _MAX_INTERVAL = 0.0002, 0.005

# Parts of the messages of errors that the loss of another process causes.
_PEER_LOSS = re.compile(
  r'Gloo|NCCL|[Cc]oordination ?[Ss]ervice|heartbeat|Socket closed|'
  r'Connection (closed|reset|refused)|UNAVAILABLE|DEADLINE_EXCEEDED'
)

Result = TypeVar('Result')


def _no_op() -> None:
  """No-op: the default for both callbacks of `polling`."""


_poll: Callable[[], None] = _no_op
_on_progress: Callable[[], None] = _no_op


def initialize(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  heartbeat: int = HEARTBEAT_TIMEOUT,
) -> None:
  """Connects this process to the other processes of the run, if any.

  On a TPU slice, in GKE and under Slurm JAX finds the addresses; elsewhere the
  first three arguments are required together.

  Args:
    coordinator: `HOST:PORT` of process 0.
    num_processes: number of processes.
    process_id: index of this process.
    heartbeat: seconds without a heartbeat after which a process counts as lost.

  Raises:
    ValueError: if some of the three are missing or contradict one another.
    RuntimeError: if the other processes cannot be reached; the message gives
      the address.
  """
  if heartbeat < 2:
    raise ValueError(f'--heartbeat must be at least 2 s, got {heartbeat}')
  options = (coordinator, num_processes, process_id)
  if any(each is not None for each in options):
    if None in options:
      raise ValueError(
        '--coordinator, --num_processes and --process_id must be given together,'
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
  # CPU devices exchange data with gloo, which matches messages by their order
  # only, so programs must run one after the other.
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.config.update('jax_cpu_enable_async_dispatch', False)
  gpus = None if coordinator else _slurm_gpus(os.environ)
  try:
    jax.distributed.initialize(
      coordinator,
      num_processes,
      process_id,
      local_device_ids=gpus,
      initialization_timeout=_INITIALIZATION_SECONDS,
      heartbeat_timeout_seconds=heartbeat,
      shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
    )
  except Exception as error:
    reason = str(error).strip().partition('\n')[0]
    raise RuntimeError(
      'the other processes cannot be reached '
      f'({coordinator or "addresses found by JAX"}): {reason}'
    ) from error


def _slurm_gpus(environment: Mapping[str, str]) -> list[int] | None:
  """Returns the GPUs of this process of a Slurm step; `None` elsewhere.

  JAX would give each process one GPU, however many processes a node has.

  Raises:
    ValueError: if the GPUs of a node cannot be divided among its processes.

  >>> step = {'SLURM_STEP_NODELIST': 'n[1-4]', 'SLURM_LOCALID': '0'}
  >>> step |= {'SLURM_STEP_TASKS_PER_NODE': '1(x4)', 'SLURM_GPUS_ON_NODE': '8'}
  >>> _slurm_gpus(step)
  [0, 1, 2, 3, 4, 5, 6, 7]
  """
  tasks = re.match(r'\d+', environment.get('SLURM_STEP_TASKS_PER_NODE', ''))
  gpus = environment.get('SLURM_GPUS_ON_NODE', '')
  if 'SLURM_STEP_NODELIST' not in environment or tasks is None:
    return None
  if not gpus.isdigit():
    return None
  count, processes = int(gpus), int(tasks[0])
  if count % processes:
    raise ValueError(
      f'the {count} GPUs of a node must be divided evenly among its processes, '
      f'got {processes}'
    )
  per_process = count // processes
  first = int(environment.get('SLURM_LOCALID', '0')) * per_process
  return list(range(first, first + per_process))


def in_cluster() -> bool:
  """Returns whether the environment describes several processes."""
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


def process_count() -> int:
  """Returns the number of processes."""
  return jax.process_count()


def is_first() -> bool:
  """Returns whether this is process 0, the one that writes files."""
  return jax.process_index() == 0


@contextlib.contextmanager
def polling(
  poll: Callable[[], None], on_progress: Callable[[], None] = _no_op
) -> Iterator[None]:
  """Installs callbacks for all waits of this module.

  Args:
    poll: called repeatedly during a wait; an exception ends the wait.
    on_progress: called when a wait ends.
  """
  global _poll, _on_progress
  previous = _poll, _on_progress
  _poll, _on_progress = poll, on_progress
  try:
    yield
  finally:
    _poll, _on_progress = previous


def wait_until(
  ready: Callable[[], bool], *, poll_fraction: float = 1 / 16
) -> None:
  """Waits until `ready` returns true, polling meanwhile.

  Args:
    ready: the condition.
    poll_fraction: time between two polls, as a fraction of the time waited so far,
      within 0.2 to 5 ms; each poll takes time from programs that run on the CPU.
  """
  start = time.monotonic()
  while not ready():
    _poll()
    interval = (time.monotonic() - start) * poll_fraction
    time.sleep(min(max(interval, _MIN_INTERVAL), _MAX_INTERVAL))
  _on_progress()


def wait_for(future: Future[Result]) -> Result:
  """Waits for a future, polling meanwhile; returns its result once done."""
  while wait([future], timeout=_MAX_INTERVAL).not_done:
    _poll()
  _on_progress()
  return future.result()


def run_on_devices(
  program: Callable[..., PyTree], *args: Any, **kwargs: Any
) -> PyTree:
  """Calls a jitted function and returns its results as whole host arrays."""
  if process_count() == 1:
    results = program(*args, **kwargs)
    arrays: list[Any] = jax.tree.leaves(results)
    wait_until(lambda: all(array.is_ready() for array in arrays))
    return jax.device_get(results)
  return wait_for(
    _run_in_thread(lambda: jax.device_get(_replicate(program(*args, **kwargs))))
  )


def fetch(tree: PyTree) -> PyTree:
  """Returns device arrays as whole host arrays on every process."""
  return run_on_devices(lambda: tree)


def gather_rows(tree: PyTree) -> PyTree:
  """Concatenates the rows of all processes, in the order of the processes.

  Args:
    tree: host arrays `[R, ...]`, of the same shapes on every process.

  Returns:
    Host arrays `[processes · R, ...]`.
  """
  processes = process_count()
  if processes == 1:
    return tree
  device_of_process: dict[int, Any] = {}
  for device in jax.devices():
    device_of_process.setdefault(device.process_index, device)
  mesh = Mesh(
    np.array([device_of_process[n] for n in range(processes)]), ('p',)
  )
  split = NamedSharding(mesh, PartitionSpec('p'))

  def to_global(leaf: np.ndarray) -> jax.Array:
    shape = (leaf.shape[0] * processes, *leaf.shape[1:])
    return jax.make_array_from_process_local_data(split, leaf, shape)

  return fetch(jax.tree.map(lambda leaf: to_global(np.asarray(leaf)), tree))


def process_slice(size: int) -> slice:
  """Returns this process's share of `size` items; the last may be shorter."""
  share = math.ceil(size / process_count())
  return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def gather_objects(content: Any) -> list[Any]:
  """Collects one object from each process, in the order of the processes.

  Args:
    content: a JSON-serialisable object of this process; NaN is allowed.
  """
  text = np.frombuffer(json.dumps(content).encode(), np.uint8)
  sizes = gather_rows(np.array([text.size], np.int32))
  # Padded to a power of two, so that few programs are compiled.
  padded = np.zeros((1, 1 << int(sizes.max()).bit_length()), np.uint8)
  padded[0, : text.size] = text
  rows = gather_rows(padded)
  return [
    json.loads(row[:size].tobytes())
    for row, size in zip(rows, sizes, strict=True)
  ]


def barrier(name: str, *, timeout: int = 600) -> None:
  """Waits until all processes have called it, without using devices.

  Args:
    name: identifier of the barrier; not to be used twice at the same time.
    timeout: seconds until the barrier raises.
  """
  if process_count() > 1:
    from orbax.checkpoint import multihost

    multihost.get_jax_distributed_client().wait_at_barrier(name, timeout * 1000)


def is_peer_loss(error: BaseException) -> bool:
  """Returns whether an error, or its cause, reports the loss of a process."""
  if process_count() == 1:
    return False
  cause: BaseException | None = error
  while cause is not None:
    if _PEER_LOSS.search(str(cause)):
      return True
    cause = cause.__cause__
  return False


def exit_process(status: int, *, orderly: bool) -> NoReturn:
  """Ends this process, even while its devices wait for other processes.

  Args:
    status: the exit status.
    orderly: whether all processes end now, so that they can disconnect.
  """
  if orderly:
    with contextlib.suppress(Exception):
      jax.distributed.shutdown()
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError):
      stream.flush()
  os._exit(status)


def put_global(
  array: np.ndarray | jax.Array, sharding: NamedSharding
) -> jax.Array:
  """Shards a host array that every process holds whole over all devices.

  Each process fills the shards of its own devices; nothing is exchanged.
  """
  if sharding.is_fully_addressable:
    return jax.device_put(array, sharding)
  whole = np.asarray(array)
  return jax.make_array_from_callback(
    whole.shape, sharding, lambda index: whole[index]
  )


def _identity(x: PyTree) -> PyTree:
  return x


def _replicate(tree: PyTree) -> PyTree:
  """Replicates arrays in one program, so that its gathers have one order."""

  def replicated_sharding(leaf: jax.Array) -> jax.sharding.Sharding:
    if leaf.is_fully_addressable or leaf.is_fully_replicated:
      return leaf.sharding
    assert isinstance(leaf.sharding, NamedSharding)
    return NamedSharding(leaf.sharding.mesh, PartitionSpec())

  present_shardings = jax.tree.map(lambda leaf: leaf.sharding, tree)
  shardings = jax.tree.map(replicated_sharding, tree)
  if shardings == present_shardings:
    return tree
  return jax.jit(_identity, out_shardings=shardings)(tree)


def _run_in_thread(work: Callable[[], Result]) -> Future[Result]:
  """Starts work in a daemon thread, which does not keep the process alive.

  An exchange never ends if another process has left it.
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
  """Returns whether TPUs are attached, so that JAX can find other hosts."""
  devices = pathlib.Path('/dev')
  attached = (*devices.glob('accel*'), *devices.glob('vfio/[0-9]*'))
  return bool(attached) and importlib.util.find_spec('libtpu') is not None
