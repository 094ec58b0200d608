# SPDX-License-Identifier: Apache-2.0
"""Evaluation: the likeliest response and k samples, of one set or several.

One program decodes the likeliest responses of all sets, and one the samples
wherever their number allows: a set of thirty problems shares its batches with
the others. What a response becomes depends on the policy, its problem and its
number alone, so that two evaluations differ by the policy.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from covrl.data import Problem, Suite, Tokenizer, prompt_rows
from covrl.evaluation.results import Evaluation, SuiteResult
from covrl.parallel import distributed
from covrl.rewards import PendingScores, Scoring
from covrl.rollout import Sampling, SamplingEngine
from covrl.rollout.score import decode
from covrl.tasks.task import Reader


@dataclasses.dataclass(frozen=True)
class _Job:
  """Responses to one problem that are sampled together.

  Attributes:
    suite: which of the sets.
    problem: which of its problems.
    first: number of the first response among the problem's samples.
  """

  suite: int
  problem: int
  first: int


@dataclasses.dataclass(frozen=True)
class _Pending:
  """Responses of a batch, and their scores to come."""

  jobs: Sequence[_Job]
  texts: Sequence[str]
  scores: PendingScores
  surprise: float
  tokens: int


class Evaluator:
  """Runs the same problems with the same noise, whenever asked."""

  def __init__(
    self,
    engine: SamplingEngine,
    scoring: Scoring,
    tokenizer: Tokenizer,
    suites: Sequence[Suite],
    *,
    max_prompt_length: int,
    prompts_at_once: int,
    group_size: int,
    key: Key[Array, ''],
    reader: Reader = lambda problem: None,
  ) -> None:
    """Tokenises the problems.

    Args:
      engine: the sampler.
      scoring: the rewards, of which those that are no shaping count.
      tokenizer: of the policy.
      suites: the sets, and how each is sampled.
      max_prompt_length: in tokens.
      prompts_at_once: problems decoded together, as many as a rollout has.
      group_size: samples decoded together for a problem, at most; where a
        set's number of samples is a multiple of the responses that a rollout
        has for a prompt, it shares the rollout's program.
      key: PRNG key of all evaluations of the run.
      reader: see `Task`; for maj@k.

    Raises:
      ValueError: if a set is empty, or a prompt is too long.
    """
    self._engine = engine
    self._scoring = scoring
    self._tokenizer = tokenizer
    self._suites = suites
    self._at_once = prompts_at_once
    self._group_size = group_size
    self._key = key
    self._reader = reader
    self._rows = [
      prompt_rows(suite.problems, tokenizer, max_prompt_length)
      for suite in suites
    ]
    for suite in suites:
      if not suite.problems:
        raise ValueError(f'an evaluation needs problems, {suite.name} has none')

  def compile(self, params: PyTree) -> None:
    """Runs every program once, on rows without a prompt: they end at once."""
    for group in {1, *(self._group(suite) for suite in self._sampled)}:
      self._sample(params, [], group, Sampling.make())

  def run(self, params: PyTree) -> Evaluation:
    """Evaluates the policy.

    Raises:
      RuntimeError: if a response could not be scored; a score of 0 would be a
        wrong figure.
    """
    greedy = [
      _Job(place, problem, 0)
      for place, suite in enumerate(self._suites)
      for problem in range(len(suite.problems))
    ]
    likeliest = self._run(params, greedy, 1, 0.0)
    sampled = [
      pending
      for (group, temperature), jobs in self._sample_jobs().items()
      for pending in self._run(params, jobs, group, temperature)
    ]
    results = self._results(likeliest, sampled)
    tokens = sum(pending.tokens for pending in sampled or likeliest)
    surprise = sum(pending.surprise for pending in sampled or likeliest)
    return Evaluation(results=results, entropy=surprise / max(tokens, 1))

  @property
  def _sampled(self) -> list[Suite]:
    return [suite for suite in self._suites if suite.samples]

  def _group(self, suite: Suite) -> int:
    """Samples of a problem that are decoded together: a share of them all."""
    return max(
      size
      for size in range(1, min(suite.samples, self._group_size) + 1)
      if suite.samples % size == 0
    )

  def _sample_jobs(self) -> dict[tuple[int, float], list[_Job]]:
    """What is to be sampled, by what can be decoded together."""
    jobs: dict[tuple[int, float], list[_Job]] = {}
    for place, suite in enumerate(self._suites):
      if suite.samples:
        group = self._group(suite)
        jobs.setdefault((group, suite.temperature), []).extend(
          _Job(place, problem, first)
          for problem in range(len(suite.problems))
          for first in range(0, suite.samples, group)
        )
    return jobs

  def _run(
    self, params: PyTree, jobs: list[_Job], group: int, temperature: float
  ) -> list[_Pending]:
    """Samples batch after batch, while workers score the ones before."""
    sampling = Sampling.make(temperature=temperature)
    return [
      self._submit(jobs[start : start + self._at_once], params, group, sampling)
      for start in range(0, len(jobs), self._at_once)
    ]

  def _submit(
    self, jobs: list[_Job], params: PyTree, group: int, sampling: Sampling
  ) -> _Pending:
    samples = self._sample(params, jobs, group, sampling)
    count = len(jobs) * group
    texts = decode(self._tokenizer, samples)[:count]
    problems = [self._problem(job) for job in jobs for _ in range(group)]
    lengths = samples.response_mask.sum(axis=1)[:count]
    own = distributed.own_share(count)
    scores = self._scoring.submit(
      texts[own],
      [problem.reference for problem in problems[own]],
      sources=[problem.source for problem in problems[own]],
      lengths=lengths[own].tolist(),
      shaping=False,
    )
    return _Pending(
      jobs=jobs,
      texts=texts,
      scores=scores,
      surprise=-float(samples.sampler_logprobs.sum()),
      tokens=int(lengths.sum()),
    )

  def _sample(
    self, params: PyTree, jobs: list[_Job], group: int, sampling: Sampling
  ) -> Any:
    """Responses to the problems of some jobs; the rest of the rows is empty."""
    width = self._rows[0][0].shape[1]
    tokens = np.full((self._at_once, width), self._tokenizer.pad_id, np.int32)
    mask = np.zeros(tokens.shape, bool)
    ids = np.zeros((self._at_once, group), np.int32)
    for row, job in enumerate(jobs):
      rows, masks = self._rows[job.suite]
      tokens[row], mask[row] = rows[job.problem], masks[job.problem]
      ids[row] = self._sequence_ids(job, group)
    return distributed.run(
      self._engine.sample,
      params,
      tokens,
      mask,
      group_size=group,
      key=self._key,
      sequence_ids=ids.reshape(-1),
      sampling=sampling,
    )

  def _sequence_ids(self, job: _Job, group: int) -> Int[np.ndarray, ' G']:
    """Which noise: the same whatever other sets there are."""
    suite = self._suites[job.suite]
    # A block of a million ids for each name, but for a run's own problems.
    block = zlib.crc32(suite.name.encode()) % 2047 + 1 if suite.name else 0
    first = job.problem * max(suite.samples, 1) + job.first
    return ((block << 20) + (first + np.arange(group)) % (1 << 20)).astype(
      np.int32
    )

  def _problem(self, job: _Job) -> Problem:
    return self._suites[job.suite].problems[job.problem]

  def _results(
    self, likeliest: Sequence[_Pending], sampled: Sequence[_Pending]
  ) -> tuple[SuiteResult, ...]:
    """Sorts what came back by set and problem."""
    greedy = dict(self._judged(likeliest))
    samples = dict(self._judged(sampled))
    return tuple(
      SuiteResult(
        suite=suite,
        greedy=np.array(
          [greedy[place, n, 0][0] for n in range(len(suite.problems))]
        ),
        correct=np.array(
          [
            [samples[place, n, s][0] for s in range(suite.samples)]
            for n in range(len(suite.problems))
          ],
          bool,
        ).reshape(len(suite.problems), suite.samples),
        responses=tuple(
          (
            greedy[place, n, 0][1],
            *(samples[place, n, s][1] for s in range(suite.samples)),
          )
          for n in range(len(suite.problems))
        ),
        answers=self._answers(
          suite,
          [
            [samples[place, n, s][1] for s in range(suite.samples)]
            for n in range(len(suite.problems))
          ],
        ),
      )
      for place, suite in enumerate(self._suites)
    )

  def _answers(
    self, suite: Suite, texts: Sequence[Sequence[str]]
  ) -> list[list[str | None]] | None:
    """The samples' final answers, if every problem of the set has some."""
    readers = [self._reader(problem) for problem in suite.problems]
    found = [
      [read(text) for text in own]
      for read, own in zip(readers, texts, strict=True)
      if read is not None
    ]
    return found if len(found) == len(readers) else None

  def _judged(
    self, batches: Sequence[_Pending]
  ) -> Iterator[tuple[tuple[int, int, int], tuple[bool, str]]]:
    """Set, problem and number of each response; whether it is right, its text."""
    for batch in batches:
      marks = self._marks(batch.scores)
      group = len(marks) // len(batch.jobs)
      for place, (mark, text) in enumerate(
        zip(marks, batch.texts, strict=True)
      ):
        job = batch.jobs[place // group]
        number = job.first + place % group
        yield (job.suite, job.problem, number), (bool(mark >= 1), text)

  def _marks(self, pending: PendingScores) -> Float[np.ndarray, ' N']:
    scores = pending.result().gathered()
    marks = np.array(scores.marks())
    failed = int(np.isnan(marks).sum())
    if failed:
      raise RuntimeError(
        f'evaluation needs every response scored, {failed} of {len(marks)} '
        f'were not: {scores.failures()[0]}'
      )
    return marks
