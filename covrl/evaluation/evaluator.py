# SPDX-License-Identifier: Apache-2.0
"""Evaluates a policy on suites of problems: greedy responses and samples.

The greedy responses of all suites share one compiled program, and so do samples
wherever their number allows. A response depends on the policy, its problem and
its index only, so that two evaluations differ by the policy alone.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from covrl.data import Problem, Suite, Tokenizer, prompt_rows
from covrl.evaluation.results import Evaluation, SuiteResult
from covrl.parallel import distributed
from covrl.rewards import PendingScores, Scoring
from covrl.rollout import Sampling, SamplingEngine
from covrl.rollout.score import decode
from covrl.tasks.task import AnswerExtractor


@dataclasses.dataclass(frozen=True)
class _Group:
  """Responses to one problem that are sampled together.

  Attributes:
    suite: index of the suite.
    problem: index of the problem in the suite.
    first: index of the first response among the problem's samples.
  """

  suite: int
  problem: int
  first: int


@dataclasses.dataclass(frozen=True)
class _PendingBatch:
  """The responses of a batch whose scores are still being computed.

  Attributes:
    groups: the groups of the batch.
    texts: the responses of all groups, in order.
    scores: the scores of this process's responses.
    nll: sum of −log π over all sampled tokens, in nats.
    tokens: number of sampled tokens.
  """

  groups: Sequence[_Group]
  texts: Sequence[str]
  scores: PendingScores
  nll: float
  tokens: int


class Evaluator:
  """Evaluates policies on the same problems with the same noise."""

  def __init__(
    self,
    engine: SamplingEngine,
    scoring: Scoring,
    tokenizer: Tokenizer,
    suites: Sequence[Suite],
    *,
    max_prompt_length: int,
    prompts_per_batch: int,
    group_size: int,
    key: Key[Array, ''],
    answer_extractor: AnswerExtractor = lambda problem: None,
  ) -> None:
    """Tokenises the problems.

    Args:
      engine: the sampler.
      scoring: the rewards; shaping rewards do not count.
      tokenizer: the policy's tokenizer.
      suites: the problems, and how each suite is sampled.
      max_prompt_length: tokens of a prompt, at most.
      prompts_per_batch: problems that are decoded together; with the number of
        a rollout's prompts, samples can share the rollout's program.
      group_size: samples of a problem that are decoded together, at most; a
        suite whose number of samples is a multiple of a rollout's responses
        per prompt shares the rollout's program.
      key: PRNG key of all evaluations.
      answer_extractor: see `Task`; for maj@k.

    Raises:
      ValueError: a suite is empty, or a prompt is too long.
    """
    self._engine = engine
    self._scoring = scoring
    self._tokenizer = tokenizer
    self._suites = suites
    self._prompts_per_batch = prompts_per_batch
    self._group_size = group_size
    self._key = key
    self._answer_extractor = answer_extractor
    self._rows = [
      prompt_rows(suite.problems, tokenizer, max_prompt_length)
      for suite in suites
    ]
    for suite in suites:
      if not suite.problems:
        raise ValueError(f'an evaluation needs problems, {suite.name} has none')

  def compile(self, params: PyTree) -> None:
    """Compiles all programs by sampling responses to padding."""
    sampled = [suite for suite in self._suites if suite.samples]
    for size in {1, *map(self._group_size_of, sampled)}:
      self._sample(params, [], size, Sampling.make())

  def evaluate(
    self,
    params: PyTree,
    on_progress: Callable[[int, int], object] | None = None,
  ) -> Evaluation:
    """Evaluates a policy.

    Args:
      params: all parameters of the policy.
      on_progress: called after each batch with the numbers of problems decoded
        so far and in all, those of greedy responses and samples together.

    Raises:
      RuntimeError: a response could not be scored; a score of 0 would bias the
        result.
    """
    greedy_groups = [
      _Group(suite, problem, 0)
      for suite, each in enumerate(self._suites)
      for problem in range(len(each.problems))
    ]
    sample_groups = self._sample_groups()
    total = len(greedy_groups) + sum(map(len, sample_groups.values()))
    done = 0

    def decode_batches(
      groups: list[_Group], size: int, temperature: float
    ) -> Iterator[_PendingBatch]:
      nonlocal done
      sampling = Sampling.make(temperature=temperature)
      for start in range(0, len(groups), self._prompts_per_batch):
        batch = groups[start : start + self._prompts_per_batch]
        yield self._submit(batch, params, size, sampling)
        done += len(batch)
        if on_progress is not None:
          on_progress(done, total)

    # Workers score a batch while the next one is decoded.
    greedy = list(decode_batches(greedy_groups, 1, 0.0))
    sampled = [
      batch
      for (size, temperature), groups in sample_groups.items()
      for batch in decode_batches(groups, size, temperature)
    ]
    results = self._results(greedy, sampled)
    nll = sum(batch.nll for batch in sampled or greedy)
    tokens = sum(batch.tokens for batch in sampled or greedy)
    return Evaluation(results=results, entropy=nll / max(tokens, 1))

  def _group_size_of(self, suite: Suite) -> int:
    """Returns the samples decoded together: the largest suitable divisor."""
    return max(
      size
      for size in range(1, min(suite.samples, self._group_size) + 1)
      if suite.samples % size == 0
    )

  def _sample_groups(self) -> dict[tuple[int, float], list[_Group]]:
    """Returns the groups to sample, by group size and temperature."""
    groups: dict[tuple[int, float], list[_Group]] = {}
    for index, suite in enumerate(self._suites):
      if suite.samples:
        size = self._group_size_of(suite)
        groups.setdefault((size, suite.temperature), []).extend(
          _Group(index, problem, first)
          for problem in range(len(suite.problems))
          for first in range(0, suite.samples, size)
        )
    return groups

  def _submit(
    self, groups: list[_Group], params: PyTree, size: int, sampling: Sampling
  ) -> _PendingBatch:
    """Samples a batch and submits this process's responses for scoring."""
    samples = self._sample(params, groups, size, sampling)
    count = len(groups) * size
    texts = decode(self._tokenizer, samples)[:count]
    problems = [self._problem(group) for group in groups for _ in range(size)]
    lengths = samples.response_mask.sum(axis=1)[:count]
    own = distributed.process_slice(count)
    scores = self._scoring.submit(
      texts[own],
      [problem.reference for problem in problems[own]],
      sources=[problem.source for problem in problems[own]],
      lengths=lengths[own].tolist(),
      shaping=False,
    )
    return _PendingBatch(
      groups=groups,
      texts=texts,
      scores=scores,
      nll=-float(samples.sampler_logprobs.sum()),
      tokens=int(lengths.sum()),
    )

  def _sample(
    self, params: PyTree, groups: list[_Group], size: int, sampling: Sampling
  ) -> Any:
    """Samples responses to the groups' problems; other rows are padding."""
    width = self._rows[0][0].shape[1]
    shape = (self._prompts_per_batch, width)
    tokens = np.full(shape, self._tokenizer.pad_id, np.int32)
    mask = np.zeros(shape, bool)
    ids = np.zeros((self._prompts_per_batch, size), np.int32)
    for row, group in enumerate(groups):
      suite_tokens, suite_mask = self._rows[group.suite]
      tokens[row] = suite_tokens[group.problem]
      mask[row] = suite_mask[group.problem]
      ids[row] = self._sequence_ids(group, size)
    return distributed.run_on_devices(
      self._engine.sample,
      params,
      tokens,
      mask,
      group_size=size,
      key=self._key,
      sequence_ids=ids.reshape(-1),
      sampling=sampling,
    )

  def _sequence_ids(self, group: _Group, size: int) -> Int[np.ndarray, ' G']:
    """Returns sequence ids, and so noise, that do not depend on other suites."""
    suite = self._suites[group.suite]
    # A block of 2^20 ids per name; block 0 for held-out problems.
    block = zlib.crc32(suite.name.encode()) % 2047 + 1 if suite.name else 0
    first = group.problem * max(suite.samples, 1) + group.first
    return ((block << 20) + (first + np.arange(size)) % (1 << 20)).astype(
      np.int32
    )

  def _problem(self, group: _Group) -> Problem:
    return self._suites[group.suite].problems[group.problem]

  def _results(
    self, greedy: Sequence[_PendingBatch], sampled: Sequence[_PendingBatch]
  ) -> tuple[SuiteResult, ...]:
    """Collects the scores and sorts the responses by suite and problem."""
    graded_greedy = dict(self._graded(greedy))
    graded_samples = dict(self._graded(sampled))
    results: list[SuiteResult] = []
    for index, suite in enumerate(self._suites):
      problems, samples = range(len(suite.problems)), range(suite.samples)
      first = [graded_greedy[index, n, 0] for n in problems]
      others = [
        [graded_samples[index, n, s] for s in samples] for n in problems
      ]
      texts = [[text for _, text in row] for row in others]
      correct = np.array([[mark for mark, _ in row] for row in others], bool)
      results.append(
        SuiteResult(
          suite=suite,
          greedy=np.array([mark for mark, _ in first]),
          correct=correct.reshape(len(problems), len(samples)),
          responses=tuple(
            (text, *row) for (_, text), row in zip(first, texts, strict=True)
          ),
          answers=self._answers(suite, texts),
        )
      )
    return tuple(results)

  def _answers(
    self, suite: Suite, texts: Sequence[Sequence[str]]
  ) -> list[list[str | None]] | None:
    """Extracts the samples' final answers; `None` if a problem has none."""
    extractors = [self._answer_extractor(each) for each in suite.problems]
    answers = [
      [extract(text) for text in responses]
      for extract, responses in zip(extractors, texts, strict=True)
      if extract is not None
    ]
    return answers if len(answers) == len(extractors) else None

  def _graded(
    self, batches: Sequence[_PendingBatch]
  ) -> Iterator[tuple[tuple[int, int, int], tuple[bool, str]]]:
    """Yields (suite, problem, sample) and (correct, text) of each response."""
    for batch in batches:
      marks = self._marks(batch.scores)
      size = len(marks) // len(batch.groups)
      for row, (mark, text) in enumerate(zip(marks, batch.texts, strict=True)):
        group = batch.groups[row // size]
        sample = group.first + row % size
        yield (group.suite, group.problem, sample), (bool(mark >= 1), text)

  def _marks(self, pending: PendingScores) -> Float[np.ndarray, ' N']:
    """Waits for the marks of all responses of a batch; 1 is correct.

    Raises:
      RuntimeError: a response could not be scored.
    """
    scores = pending.result().gather()
    marks = np.array(scores.marks())
    failed = int(np.isnan(marks).sum())
    if failed:
      raise RuntimeError(
        f'evaluation needs every response scored, {failed} of {len(marks)} '
        f'were not: {scores.failures()[0]}'
      )
    return marks
