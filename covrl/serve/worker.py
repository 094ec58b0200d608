# SPDX-License-Identifier: Apache-2.0
"""Thread that runs the engine for a server: submission, cancellation, limits."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence

from covrl.data import Tokenizer
from covrl.rollout import NewTokens, Request, RequestEngine
from covrl.serve.metrics import Metrics
from covrl.serve.text import Delta, NotFiniteError, ResponseText

OnDelta = Callable[[int, Delta | Exception], None]


class QueueFullError(RuntimeError):
  """Error of a submission for which the queue has no room now."""


class WorkerStoppedError(RuntimeError):
  """Error of a submission after the engine failed or the server was stopped."""


@dataclasses.dataclass(eq=False)
class Submission:
  """Responses that were submitted together.

  Attributes:
    requests: one per response.
    stop: strings that end each response.
    on_delta: called in the worker's thread with the index of a response and its
      new part, or the error that ended the response or the worker.
    submitted: time of the submission, in seconds of `time.monotonic`.
    unfinished: number of responses that are not finished.
  """

  requests: Sequence[Request]
  stop: Sequence[str]
  on_delta: OnDelta
  submitted: float
  unfinished: int


@dataclasses.dataclass
class _Response:
  """A response that is being sampled.

  Attributes:
    submission: the submission that it belongs to.
    index: index among the responses of that submission.
    text: converts its tokens to text and searches for stop strings.
    has_tokens: whether a token of it has been sampled.
  """

  submission: Submission
  index: int
  text: ResponseText
  has_tokens: bool = False


class Worker:
  """Runs an engine in a thread.

  Args:
    engine: the engine; only the thread uses it.
    tokenizer: decodes the responses.
    max_waiting: responses beyond the engine's slots that may wait; more are
      refused.
    metrics: receives counts and times.
    on_failure: called if the engine fails.
  """

  def __init__(
    self,
    engine: RequestEngine,
    tokenizer: Tokenizer,
    *,
    max_waiting: int,
    metrics: Metrics,
    on_failure: Callable[[BaseException], None] = lambda error: None,
  ) -> None:
    if max_waiting < 0:
      raise ValueError(f'max_waiting must be at least 0, got {max_waiting}')
    self.engine = engine
    self.capacity = engine.slots + max_waiting
    self._tokenizer, self._metrics = tokenizer, metrics
    self._on_failure = on_failure
    self._condition = threading.Condition()
    # Work for the thread, guarded by the condition.
    self._new_submissions: list[Submission] = []
    self._cancelled: list[Submission] = []
    self._unfinished = 0
    self._stop_error: BaseException | None = None
    # Unfinished responses by their number in the engine, and these numbers.
    self._responses: dict[int, _Response] = {}
    self._request_numbers: dict[Submission, list[int]] = {}
    self._thread = threading.Thread(
      target=self._run, name='covrl engine', daemon=True
    )
    metrics.set('slots', engine.slots)

  def start(self) -> None:
    """Starts the thread."""
    self._thread.start()

  def stop(self) -> None:
    """Ends the thread after its segment; unfinished responses get an error."""
    with self._condition:
      if self._stop_error is None:
        self._stop_error = WorkerStoppedError('the server is shutting down')
      self._condition.notify()
    self._thread.join()

  @property
  def is_running(self) -> bool:
    """Whether requests are accepted."""
    return self._stop_error is None

  def submit(
    self, requests: Sequence[Request], stop: Sequence[str], on_delta: OnDelta
  ) -> Submission:
    """Submits responses; all or none.

    Args:
      requests: one per response.
      stop: strings that end a response.
      on_delta: see `Submission`.

    Raises:
      ValueError: a request is invalid, or there are more than slots and queue
        hold.
      QueueFullError: there is no room now.
      WorkerStoppedError: the engine has ended.
    """
    for request in requests:
      request.check(self.engine.limits)
    count = len(requests)
    if count > self.capacity:
      raise ValueError(
        f'prompts × n must be at most {self.capacity}, got {count}'
      )
    submission = Submission(requests, stop, on_delta, time.monotonic(), count)
    with self._condition:
      if self._stop_error is not None:
        raise WorkerStoppedError(f'the engine has ended: {self._stop_error}')
      if self._unfinished + count > self.capacity:
        raise QueueFullError(
          f'the queue must have room for {count} responses, got room for'
          f' {self.capacity - self._unfinished} of {self.capacity}'
        )
      self._unfinished += count
      self._new_submissions.append(submission)
      self._condition.notify()
    self._metrics.add(
      'prompt_tokens_total', sum(len(request.prompt) for request in requests)
    )
    return submission

  def cancel(self, submission: Submission) -> None:
    """Cancels the responses of a submission that are not finished."""
    with self._condition:
      self._cancelled.append(submission)
      self._condition.notify()

  def _run(self) -> None:
    """Runs the engine until the worker is stopped or the engine fails."""
    try:
      while self._wait():
        if self._responses:
          self._step()
    except BaseException as error:
      # Also errors of the device: nothing else can be sampled.
      with self._condition:
        self._stop_error = error
      self._on_failure(error)
    finally:
      self._end()

  def _wait(self) -> bool:
    """Waits for work and takes it; returns false at the end."""
    with self._condition:
      while not (
        self._stop_error
        or self._new_submissions
        or self._cancelled
        or self._responses
      ):
        self._condition.wait()
      if self._stop_error:
        return False
      new, self._new_submissions = self._new_submissions, []
      cancelled, self._cancelled = self._cancelled, []
    for submission in new:
      self._add(submission)
    for submission in cancelled:
      self._remove(submission)
    self._set_gauges()
    return True

  def _add(self, submission: Submission) -> None:
    """Submits the requests of a submission to the engine."""
    self._request_numbers[submission] = []
    for index, request in enumerate(submission.requests):
      number = self.engine.submit(request)
      self._request_numbers[submission].append(number)
      self._responses[number] = _Response(
        submission, index, ResponseText(self._tokenizer, submission.stop)
      )

  def _remove(self, submission: Submission) -> None:
    """Cancels the unfinished responses of a submission."""
    for number in self._request_numbers.get(submission, ()):
      if number in self._responses:
        self.engine.cancel(number)
        self._finish(number, 'cancelled')

  def _step(self) -> None:
    """Decodes a segment and delivers the new parts of responses."""
    started = time.monotonic()
    new_tokens = self.engine.step()
    if new_tokens:
      self._metrics.add('segments_total')
      self._metrics.add('segment_seconds_total', time.monotonic() - started)
    self._set_gauges()
    for number, new in new_tokens.items():
      self._deliver(number, new)
    self._set_gauges()

  def _set_gauges(self) -> None:
    """Sets the metrics of running and waiting responses."""
    self._metrics.set('waiting', self.engine.num_waiting)
    self._metrics.set('running', self.engine.num_running)

  def _deliver(self, number: int, new: NewTokens) -> None:
    """Passes new tokens of a response to its submission."""
    response = self._responses[number]
    try:
      delta = response.text.append(new)
    except NotFiniteError as error:
      if new.finish_reason is None:
        self.engine.cancel(number)
      self._finish(number, 'error')
      response.submission.on_delta(response.index, error)
      return
    self._metrics.add('generated_tokens_total', len(delta.tokens))
    elapsed = time.monotonic() - response.submission.submitted
    if not response.has_tokens:
      response.has_tokens = True
      self._metrics.observe('first_token_seconds', elapsed)
    if delta.finish_reason is not None:
      if new.finish_reason is None:
        # A stop string.
        self.engine.cancel(number)
      self._metrics.observe('response_seconds', elapsed)
      self._finish(number, delta.finish_reason)
    response.submission.on_delta(response.index, delta)

  def _finish(self, number: int, reason: str) -> None:
    """Removes a finished response and frees its place in the queue."""
    submission = self._responses.pop(number).submission
    submission.unfinished -= 1
    if not submission.unfinished:
      del self._request_numbers[submission]
    with self._condition:
      self._unfinished -= 1
    self._metrics.add('responses_total', label=f'finish_reason="{reason}"')

  def _end(self) -> None:
    """Ends all unfinished responses with an error."""
    with self._condition:
      new, self._new_submissions = self._new_submissions, []
    error = WorkerStoppedError(f'the engine has ended: {self._stop_error}')
    for submission in new:
      for index in range(len(submission.requests)):
        submission.on_delta(index, error)
    for number in list(self._responses):
      response = self._responses[number]
      self._finish(number, 'error')
      response.submission.on_delta(response.index, error)
