# SPDX-License-Identifier: Apache-2.0
"""Pool of killable worker processes, so that a scorer cannot stop a run.

Each worker is a fresh interpreter with its own connection and a thread in the
parent that sends it one response at a time. The response on which a worker hangs
or dies is therefore known: it is reported, the worker is replaced, and no other
response is lost or scored twice. Nothing is forked (JAX has threads), no lock is
shared with a process that may be killed, and workers do not import the main
program. A worker ends with everything that it has started, also when the trainer is
killed; it cannot send signals to the trainer, and has no network unless
`network` is true.

A response that could not be scored has a score of NaN; the trainer masks it.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import inspect
import json
import math
import pickle
import queue
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from covrl.config.recipe_files import SCORE_FUNCTION
from covrl.rewards._worker_process import (
  Modules,
  Reply,
  WorkerProcess,
  WorkerSettings,
)
from covrl.rewards.outcome import Outcome, Status
from covrl.rewards.reward import ScoreFunction

_REQUIRED_FORM = (
  'a score function must be one that workers can import, at the top of the'
  ' recipe, in a file beside it or in an installed module'
)


class RewardPool:
  """Worker processes that score responses.

  They start, import the scorer and score `example` in the background. The pool is
  closed by `close`, by a `with` block or at exit.

  Args:
    score_fn: `(response, reference) -> number or Outcome`; a function that
      workers can import (not of the main script, not a lambda) or of a recipe's
      files, or its name as `'module:function'`.
    workers: number of processes.
    timeout: time limit per response in seconds.
    memory_limit: bytes that a worker may allocate after it is ready (on Linux;
      elsewhere unlimited).
    start_timeout: seconds for a worker to become ready.
    example: a response and a reference to warm up with, so that imports at the
      scorer's first call do not count as a response's time.
    environment: names of environment variables that workers receive besides
      those of `ENVIRONMENT`.
    network: whether workers may use the network.
    modules: file and text of modules that workers import, by their names.

  Raises:
    ValueError: if a number is not positive, workers cannot import `score_fn`, or
      it does not take two arguments.
  """

  def __init__(
    self,
    score_fn: ScoreFunction | str,
    *,
    workers: int = 2,
    timeout: float = 5.0,
    memory_limit: int = 1 << 30,
    start_timeout: float = 120.0,
    example: tuple[str, Any] | None = None,
    environment: Sequence[str] = (),
    network: bool = False,
    modules: Modules | None = None,
  ) -> None:
    for name, value in (
      ('workers', workers),
      ('timeout', timeout),
      ('memory_limit', memory_limit),
      ('start_timeout', start_timeout),
    ):
      if not 0 < value < math.inf:
        raise ValueError(f'{name} must be finite and positive, got {value}')
    self._start_timeout = start_timeout
    settings = WorkerSettings(
      score_fn=_check_and_pickle(score_fn),
      example=example,
      timeout=timeout,
      memory_limit=memory_limit,
      start_timeout=start_timeout,
      environment=tuple(environment),
      network=network,
      modules=modules or {},
    )
    self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
    self._lock = threading.Lock()
    self._calls: set[PoolCall] = set()
    self._failure = ''
    self._workers = [WorkerProcess(settings) for _ in range(workers)]
    self._threads = [
      threading.Thread(
        target=self._serve, args=(worker,), name='rewards', daemon=True
      )
      for worker in self._workers
    ]
    for thread in self._threads:
      thread.start()
    atexit.register(self.close)

  def __enter__(self) -> RewardPool:
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def warm_up(self) -> None:
    """Waits until every worker is ready.

    Raises:
      RuntimeError: if a worker could not be started.
    """
    for worker in self._workers:
      worker.start_finished.wait(self._start_timeout)
    with self._lock:
      self._raise_failure()

  def submit(
    self, responses: Sequence[str], references: Sequence[Any]
  ) -> Future[list[Outcome]]:
    """Starts scoring responses; equal ones of a call are scored once.

    Args:
      responses: the policy's responses.
      references: the scorer's second argument for each, JSON-serialisable.

    Returns:
      A future of the outcomes, in order. It completes within `timeout` and
      `start_timeout` seconds per queued response; its `result()` raises
      `RuntimeError` if workers cannot be started or the pool was closed.

    Raises:
      ValueError: if the numbers of references and responses differ.
      RuntimeError: if the pool is closed or could not start a worker.
    """
    if len(responses) != len(references):
      raise ValueError(
        'references must be as many as responses, got'
        f' {len(references)} for {len(responses)}'
      )
    call = self.open(len(responses))
    for index, pair in enumerate(zip(responses, references, strict=True)):
      self.add(call, index, *pair)
    return call.future

  def open(self, size: int) -> PoolCall:
    """Starts a call whose responses are added one by one.

    Args:
      size: number of responses that will be added.

    Raises:
      RuntimeError: if the pool is closed or could not start a worker.
    """
    call = PoolCall(size)
    call.future.set_running_or_notify_cancel()
    with self._lock:
      self._raise_failure()
      if size:
        self._calls.add(call)
      else:
        call.future.set_result([])
    return call

  def add(
    self, call: PoolCall, index: int, response: str, reference: Any
  ) -> None:
    """Starts scoring a response, unless the call has an equal one.

    Args:
      call: a call of this pool.
      index: index of the response in the call.
      response: the policy's response.
      reference: the scorer's second argument, JSON-serialisable.

    Raises:
      TypeError: if the response is not a text.
      ValueError: if the reference is not JSON.
      RuntimeError: if the pool is closed or could not start a worker.
    """
    value: object = response
    if not isinstance(value, str):
      raise TypeError(f'a response must be a text, got {value!r:.80}')
    try:
      key = response, json.dumps(reference, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
      raise ValueError(
        'the reference of a problem must be JSON, got'
        f' {_shown(reference)}: {str(error)[:200]}'
      ) from None
    with self._lock:
      self._raise_failure()
      item = call.items.get(key)
      is_new = item is None
      if item is None:
        item = call.items[key] = _Item(call, (response, reference))
      item.indices.append(index)
      is_complete = item.outcome is not None and self._add_outcome(call, item)
    if is_new:
      self._queue.put(item)
    if is_complete:
      call.finish()

  def cancel(self, call: PoolCall) -> None:
    """Drops a call: its responses that no worker has begun to score are skipped.

    Its future then never completes.
    """
    with self._lock:
      self._calls.discard(call)

  def close(self) -> None:
    """Kills the workers; calls that are not complete raise an error."""
    self._fail('the reward pool is closed')
    for worker in self._workers:
      worker.close()
    for thread in self._threads:
      thread.join(timeout=10.0)
    atexit.unregister(self.close)

  def _raise_failure(self) -> None:
    """Raises the error that has ended the pool, if any."""
    if self._failure:
      raise RuntimeError(self._failure)

  def _serve(self, worker: WorkerProcess) -> None:
    """Runs in a thread of the pool: keeps one worker alive and busy."""
    try:
      worker.ensure_ready()
      while (item := self._queue.get()) is not None and not self._failure:
        if item.call not in self._calls:
          continue
        self._record(item, _outcome(worker.score(*item.arguments)))
        worker.ensure_ready()
    except Exception as error:
      self._fail(f'a reward worker could not be started: {error}')
    finally:
      worker.stop()

  def _record(self, item: _Item, outcome: Outcome) -> None:
    """Stores the outcome of an item, and completes its call if it was the last."""
    with self._lock:
      item.outcome = outcome
      is_complete = self._add_outcome(item.call, item)
    if is_complete:
      item.call.finish()

  def _add_outcome(self, call: PoolCall, item: _Item) -> bool:
    """Adds an item's outcome to its call; returns whether it was the call's last."""
    assert item.outcome is not None
    for index in item.indices:
      call.outcomes[index] = item.outcome
    is_complete = len(call.outcomes) == call.size and call in self._calls
    if is_complete:
      self._calls.remove(call)
    return is_complete

  def _fail(self, reason: str) -> None:
    """Fails the pool: pending and future calls raise `reason`."""
    with self._lock:
      if self._failure:
        return
      self._failure = reason
      calls, self._calls = self._calls, set()
    for call in calls:
      call.future.set_exception(RuntimeError(reason))
    for _ in self._threads:
      self._queue.put(None)


@dataclasses.dataclass(eq=False)
class PoolCall:
  """Responses that are scored together, equal ones once.

  Attributes:
    size: number of responses.
    outcomes: outcomes so far, by index.
    items: the distinct pairs of response and reference so far.
    future: the outcomes of all responses, in order.
  """

  size: int
  outcomes: dict[int, Outcome] = dataclasses.field(default_factory=dict)
  items: dict[tuple[str, str], _Item] = dataclasses.field(default_factory=dict)
  future: Future[list[Outcome]] = dataclasses.field(default_factory=Future)

  def finish(self) -> None:
    """Completes the future; all outcomes are known."""
    self.future.set_result([self.outcomes[i] for i in range(self.size)])


@dataclasses.dataclass(eq=False)
class _Item:
  """A response and its reference, with the indices of all equal ones of the call.

  Attributes:
    call: the call that waits for the outcome.
    arguments: the response and its reference.
    indices: indices in the call of all equal pairs.
    outcome: the outcome; `None` until it is known.
  """

  call: PoolCall
  arguments: tuple[str, Any]
  indices: list[int] = dataclasses.field(default_factory=list)
  outcome: Outcome | None = None


def _outcome(reply: Reply) -> Outcome:
  """Converts a worker's reply into an outcome."""
  status, score, detail = reply
  return Outcome(score, Status(status), detail)


def _check_and_pickle(score_fn: ScoreFunction | str) -> bytes:
  """Checks and pickles a score function, for worker processes."""
  if isinstance(score_fn, str):
    if not SCORE_FUNCTION.fullmatch(score_fn):
      raise ValueError(
        'the name of a score function must have the form module:function, got'
        f' {score_fn!r}'
      )
    return pickle.dumps(score_fn)
  _check_arguments(score_fn)
  try:
    return _pickle_function(score_fn)
  except (pickle.PicklingError, AttributeError, TypeError) as error:
    raise ValueError(f'{_REQUIRED_FORM}, got {score_fn!r}: {error}') from None


def _pickle_function(score_fn: ScoreFunction) -> bytes:
  """Pickles a function by reference, or by value if it is of a recipe's file.

  Raises:
    pickle.PicklingError: the function cannot be pickled, or is of the main
      script.
  """
  function: Any = score_fn
  while isinstance(function, functools.partial):
    function = function.func
  module = sys.modules.get(getattr(function, '__module__', None) or '')
  # Another module may have the name of a file beside the recipe.
  globals_ = getattr(function, '__globals__', vars(module) if module else None)
  if module is not None and globals_ is vars(module):
    pickled = pickle.dumps(score_fn)
    if b'__main__' in pickled:
      raise pickle.PicklingError('it is of the main script')
    return pickled
  # Recipes and the files beside them cannot be imported by name.
  import cloudpickle

  return cloudpickle.dumps(score_fn)


def _check_arguments(score_fn: ScoreFunction) -> None:
  """Refuses a function that cannot be called with two arguments."""
  try:
    signature = inspect.signature(score_fn)
  except (TypeError, ValueError):
    # A built-in function without a signature, or not a function.
    if callable(score_fn):
      return
    raise ValueError(f'{_REQUIRED_FORM}, got {score_fn!r}') from None
  try:
    signature.bind('', None)
  except TypeError:
    name = getattr(score_fn, '__name__', repr(score_fn))
    raise ValueError(
      'a score function must take a response and a reference, (response,'
      f' reference) -> number, got {name}{signature}'
    ) from None


def _shown(reference: object) -> str:
  """Returns the beginning of a value, or its type if it cannot be written."""
  try:
    return f'{reference!r:.200}'
  except (ValueError, RecursionError):
    return f'a value of type {type(reference).__name__}'
