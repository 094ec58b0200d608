# SPDX-License-Identifier: Apache-2.0
"""Evaluates a policy on suites of problems: greedy responses and samples.

The greedy responses of all suites share one compiled program, and so do the samples
of suites with equal group sizes. A response depends on the policy, its problem and
its index only, so that two evaluations differ by the policy alone.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from covrl.array_checks import check_integer, check_number
from covrl.data import Problem, Suite, Tokenizer, prompt_rows
from covrl.evaluation.batches import (
  PendingBatch,
  ProblemGroup,
  accuracies,
  graded_responses,
)
from covrl.evaluation.results import Evaluation, SuiteResult
from covrl.evaluation.voting import checked_extractor, merge_equal_answers
from covrl.parallel import distributed
from covrl.rewards import PendingScores, Scoring
from covrl.rollout import Sampling, SamplingEngine
from covrl.rollout.score import decode_responses
from covrl.tasks.task import AnswerExtractor


class EvaluationError(RuntimeError):
  """Raised when an evaluation has no result; the message is one sentence."""


class OnProgress(Protocol):
  """A function that receives the progress of an evaluation."""

  def __call__(self, done: int, total: int, **metrics: float) -> object:
    """Receives the progress.

    Args:
      done: number of responses that are decoded.
      total: number of responses in all.
      **metrics: accuracies of the responses that are scored by now.
    """


class Evaluator:
  """Evaluates policies on the same problems with the same random numbers."""

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
    max_failures: float = 0.05,
  ) -> None:
    """Tokenises the problems.

    Args:
      engine: the sampler.
      scoring: the rewards; shaping rewards are ignored.
      tokenizer: the policy's tokenizer.
      suites: the problems, and how each suite is sampled.
      max_prompt_length: tokens of a prompt, at most.
      prompts_per_batch: problems that are decoded together; if a rollout has as
        many prompts, samples can share the rollout's program.
      group_size: samples of a problem that are decoded together, at most; a
        suite whose number of samples is a multiple of a rollout's responses
        per prompt shares the rollout's program.
      key: PRNG key of all evaluations.
      answer_extractor: see `Task`; for maj@k.
      max_failures: fraction of the responses that may remain without a score.

    Raises:
      TypeError: a number is of another type.
      ValueError: there is no suite, one is empty, two have the same name, a
        prompt is too long, or a number is out of range.
    """
    check_integer('prompts_per_batch', prompts_per_batch, 1)
    check_integer('group_size', group_size, 1)
    check_number('max_failures', max_failures, 0, 1)
    if not suites:
      raise ValueError('suites must not be empty, got none')
    names = Counter(suite.name for suite in suites)
    for name, count in names.items():
      if count > 1:
        raise ValueError(
          f'suites must have different names, got {count} {name!r}'
        )
    self._engine = engine
    self._scoring = scoring
    self._tokenizer = tokenizer
    self._suites = suites
    self._prompts_per_batch = prompts_per_batch
    self._group_size = group_size
    self._key = key
    self._answer_extractor = answer_extractor
    self._max_failures = max_failures
    self._prompt_rows = [
      prompt_rows(suite.problems, tokenizer, max_prompt_length)
      for suite in suites
    ]
    for suite in suites:
      if not suite.problems:
        raise ValueError(f'suite {suite.name!r} must have problems, got none')

  def compile(self, params: PyTree) -> None:
    """Compiles all programs by sampling responses to padding."""
    sampled = [suite for suite in self._suites if suite.samples]
    for size in {1, *map(self._group_size_of, sampled)}:
      shape = (self._prompts_per_batch, self._prompt_rows[0][0].shape[1])
      self._engine.warm_up(params, shape, group_size=size)

  def evaluate(
    self, params: PyTree, on_progress: OnProgress | None = None
  ) -> Evaluation:
    """Evaluates a policy.

    Responses that cannot be scored are counted and left out.

    Args:
      params: all parameters of the policy.
      on_progress: called while responses are decoded.

    Raises:
      EvaluationError: more responses than allowed could not be scored, or the
        logits of one are not finite.
    """
    greedy_groups = [
      ProblemGroup(index, problem, 0)
      for index, suite in enumerate(self._suites)
      for problem in range(len(suite.problems))
    ]
    sample_groups = self._sample_groups()
    total = len(greedy_groups) + sum(
      size * len(groups) for (size, _), groups in sample_groups.items()
    )
    greedy: list[PendingBatch] = []
    sampled: list[PendingBatch] = []
    from_policy: list[PendingBatch] = []  # sampled at temperature 1
    done = 0

    def report(finished: int) -> None:
      if on_progress is not None:
        metrics = accuracies(greedy=greedy, correct_samples=sampled)
        on_progress(min(done + finished, total), total, **metrics)

    # Workers score a batch while the next one is decoded.
    report(0)
    for (size, temperature), groups, batches in (
      ((1, 0.0), greedy_groups, greedy),
      *((kind, groups, sampled) for kind, groups in sample_groups.items()),
    ):
      sampling = Sampling.make(temperature=temperature)
      for start in range(0, len(groups), self._prompts_per_batch):
        batch = groups[start : start + self._prompts_per_batch]
        batches.append(self._submit(batch, params, size, sampling, report))
        if temperature == 1:
          from_policy.append(batches[-1])
        done += len(batch) * size
        report(0)
    results, highest_grade = self._results(greedy, sampled)
    nll = sum(batch.nll for batch in from_policy)
    tokens = sum(batch.tokens for batch in from_policy)
    entropy = nll / tokens if tokens else math.nan
    return Evaluation(
      results=results, entropy=entropy, highest_grade=highest_grade
    )

  def _group_size_of(self, suite: Suite) -> int:
    """Returns the samples decoded together: the largest suitable divisor."""
    return max(
      size
      for size in range(1, min(suite.samples, self._group_size) + 1)
      if suite.samples % size == 0
    )

  def _sample_groups(self) -> dict[tuple[int, float], list[ProblemGroup]]:
    """Returns the groups to sample, by group size and temperature."""
    groups: dict[tuple[int, float], list[ProblemGroup]] = {}
    for index, suite in enumerate(self._suites):
      if suite.samples:
        size = self._group_size_of(suite)
        groups.setdefault((size, suite.temperature), []).extend(
          ProblemGroup(index, problem, first)
          for problem in range(len(suite.problems))
          for first in range(0, suite.samples, size)
        )
    return groups

  def _submit(
    self,
    groups: list[ProblemGroup],
    params: PyTree,
    size: int,
    sampling: Sampling,
    report: Callable[[int], object],
  ) -> PendingBatch:
    """Samples a batch and submits this process's responses for scoring."""
    samples = self._sample(params, groups, size, sampling, report)
    count = len(groups) * size
    has_nan = np.isnan(samples.sampler_logprobs).any(axis=1)
    if has_nan.any():
      raise EvaluationError(
        f'the logits of all responses must be finite, got nan in {has_nan.sum()} of'
        f' {count}'
      )
    texts = decode_responses(self._tokenizer, samples)[:count]
    problems = [self._problem(group) for group in groups for _ in range(size)]
    lengths = samples.response_mask.sum(axis=1)[:count]
    scores = self._score(texts, problems, lengths=lengths.tolist())
    return PendingBatch(
      groups=groups,
      texts=texts,
      scores=scores,
      nll=-float(samples.sampler_logprobs.sum()),
      tokens=int(lengths.sum()),
      truncated=samples.truncated[:count].tolist(),
    )

  def _score(
    self,
    texts: Sequence[str],
    problems: Sequence[Problem],
    *,
    references: Sequence[Any] | None = None,
    lengths: Sequence[int] | None = None,
  ) -> PendingScores:
    """Submits this process's responses to some problems for scoring.

    Args:
      texts: the responses.
      problems: the problem of each.
      references: references other than the problems' own.
      lengths: length of each response in tokens.
    """
    local = distributed.process_slice(len(texts))
    if references is None:
      references = [problem.reference for problem in problems]
    return self._scoring.submit(
      texts[local],
      references[local],
      sources=[problem.source for problem in problems[local]],
      lengths=(lengths or [1] * len(texts))[local],
      shaping=False,
    )

  def _sample(
    self,
    params: PyTree,
    groups: list[ProblemGroup],
    size: int,
    sampling: Sampling,
    report: Callable[[int], object],
  ) -> Any:
    """Samples responses to the groups' problems; other rows are padding."""
    width = self._prompt_rows[0][0].shape[1]
    shape = (self._prompts_per_batch, width)
    tokens = np.full(shape, self._tokenizer.pad_id, np.int32)
    mask = np.zeros(shape, bool)
    ids = np.zeros((self._prompts_per_batch, size), np.int32)
    for row, group in enumerate(groups):
      suite_tokens, suite_mask = self._prompt_rows[group.suite]
      tokens[row] = suite_tokens[group.problem]
      mask[row] = suite_mask[group.problem]
      ids[row] = self._sequence_ids(group, size)
    padding = (self._prompts_per_batch - len(groups)) * size
    return distributed.run_on_devices(
      self._engine.sample,
      params,
      tokens,
      mask,
      group_size=size,
      key=self._key,
      sequence_ids=ids.reshape(-1),
      sampling=sampling,
      on_progress=lambda finished: report(max(finished - padding, 0)),
    )

  def _sequence_ids(
    self, group: ProblemGroup, size: int
  ) -> Int[np.ndarray, ' G']:
    """Returns sequence ids, which seed samples, independent of other suites."""
    suite = self._suites[group.suite]
    # A block of 2^20 ids per name; block 0 for held-out problems.
    block = zlib.crc32(suite.name.encode()) % 2047 + 1 if suite.name else 0
    first = group.problem * max(suite.samples, 1) + group.first
    return ((block << 20) + (first + np.arange(size)) % (1 << 20)).astype(
      np.int32
    )

  def _problem(self, group: ProblemGroup) -> Problem:
    return self._suites[group.suite].problems[group.problem]

  def _results(
    self, greedy: Sequence[PendingBatch], sampled: Sequence[PendingBatch]
  ) -> tuple[tuple[SuiteResult, ...], float]:
    """Returns the responses by suite and problem, and the highest grade."""
    failures, grades = list[str](), list[float]()
    graded_greedy = dict(graded_responses(greedy, failures, grades))
    graded_samples = dict(graded_responses(sampled, failures, grades))
    self._check_failures(grades, failures)
    results: list[SuiteResult] = []
    for index, suite in enumerate(self._suites):
      rows = [
        [
          graded_greedy[index, n, 0],
          *(graded_samples[index, n, s] for s in range(suite.samples)),
        ]
        for n in range(len(suite.problems))
      ]
      texts = [[response.text for response in row] for row in rows]
      correct = np.array([[r.correctness for r in row] for row in rows], float)
      samples = [row[1:] for row in texts]
      answers, undecided = self._answers(suite, samples, correct[:, 1:])
      results.append(
        SuiteResult(
          suite=suite,
          greedy=correct[:, 0],
          correct=correct[:, 1:],
          responses=texts,
          answers=answers,
          undecided=undecided,
          truncated=sum(r.is_truncated for row in rows for r in row),
        )
      )
    highest_grade = max((g for g in grades if not math.isnan(g)), default=0.0)
    return tuple(results), highest_grade

  def _answers(
    self,
    suite: Suite,
    texts: Sequence[Sequence[str]],
    correct: Float[np.ndarray, 'N k'],
  ) -> tuple[list[list[str | None]] | None, frozenset[int]]:
    """Extracts the samples' final answers, equal ones in the same spelling.

    Returns:
      The answers by problem, `None` if a problem has none; and the problems of
      which two wrong answers could not be compared.
    """
    extractors = [
      checked_extractor(self._answer_extractor(p)) for p in suite.problems
    ]
    answers = [
      [extract(text) for text in responses]
      for extract, responses in zip(extractors, texts, strict=True)
      if extract is not None
    ]
    if len(answers) != len(extractors):
      return None, frozenset()
    undecided: set[int] = set()

    def are_equal(pairs: Sequence[tuple[int, str, str]]) -> list[bool]:
      responses = [
        texts[row][answers[row].index(answer)] for row, answer, _ in pairs
      ]
      problems = [suite.problems[row] for row, _, _ in pairs]
      references = [other for *_, other in pairs]
      scores = self._score(responses, problems, references=references)
      correctness = scores.result().gather().correctness()
      undecided.update(
        row
        for (row, *_), is_correct in zip(pairs, correctness, strict=True)
        if np.isnan(is_correct)
      )
      return [is_correct == 1 for is_correct in correctness]

    merged = merge_equal_answers(answers, correct, are_equal)
    return merged, frozenset(undecided)

  def _check_failures(
    self, grades: Sequence[float], failures: Sequence[str]
  ) -> None:
    """Raises `EvaluationError` if too many responses have no score."""
    count = int(np.isnan(grades).sum())
    if count > self._max_failures * len(grades):
      ((reason, _),) = Counter(failures).most_common(1)
      raise EvaluationError(
        f'responses without a score must be at most {self._max_failures:.0%} of an'
        f' evaluation (rewards.max_failures), got {count} of {len(grades)}; the most'
        f' frequent reason: {reason}'
      )
