# SPDX-License-Identifier: Apache-2.0
"""Held-out evaluation: greedy, mean@k and pass@k, with standard errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PyTree

from covrl.data import (
  ListSource,
  Problem,
  PromptBatch,
  PromptStream,
  Tokenizer,
)
from covrl.rewards import PendingScores, Scoring
from covrl.rollout import Sampling, SamplingEngine
from covrl.rollout.collect import decode


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """What the policy got right.

  Attributes:
    prompts: the problems.
    greedy: whether the likeliest response was right.
    correct: whether each sample was.
    entropy: mean of −log π over sampled tokens, in nats.
  """

  prompts: tuple[str, ...]
  greedy: Bool[np.ndarray, ' N']
  correct: Bool[np.ndarray, 'N k']
  entropy: float

  def summary(self) -> dict[str, float]:
    """The figures, each with its standard error over problems."""
    samples = self.correct.shape[1]
    figures = {
      'greedy': self.greedy.astype(float),
      f'mean@{samples}': self.correct.mean(axis=1),
      f'pass@{samples}': self.correct.any(axis=1).astype(float),
    }
    summary: dict[str, float] = {'problems': len(self.greedy)}
    for name, values in figures.items():
      summary[name] = float(values.mean())
      summary[f'{name}_stderr'] = float(values.std() / np.sqrt(len(values)))
    return summary | {'entropy': self.entropy}

  def per_problem(self, iteration: int) -> dict[str, Any]:
    """Results of every problem, as the run directory keeps them."""
    return {
      'iteration': iteration,
      'problems': [
        {'prompt': prompt, 'greedy': int(greedy), 'correct': correct}
        for prompt, greedy, correct in zip(
          self.prompts,
          self.greedy,
          self.correct.astype(int).tolist(),
          strict=True,
        )
      ],
    }


class Evaluator:
  """Runs the same held-out problems with the same noise, whenever asked."""

  def __init__(
    self,
    engine: SamplingEngine,
    scoring: Scoring,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    *,
    samples: int,
    temperature: float,
    max_prompt_length: int,
    prompts_at_once: int,
    key: Key[Array, ''],
  ) -> None:
    """Tokenises the problems.

    Args:
      engine: the sampler.
      scoring: the rewards, of which those that are no shaping count.
      tokenizer: of the policy.
      problems: held out.
      samples: k.
      temperature: of the k samples.
      max_prompt_length: in tokens.
      prompts_at_once: problems decoded together; as many as a rollout has, and
        with as many samples as it has responses, they share its program.
      key: PRNG key of all evaluations of the run, so that two of them differ
        by the policy and not by the noise.

    Raises:
      ValueError: if there are no problems, or a prompt is too long.
    """
    self._engine = engine
    self._scoring = scoring
    self._tokenizer = tokenizer
    self._problems = problems
    self._samples = samples
    self._key = key
    self._greedy = Sampling.make(temperature=0.0)
    self._sampled = Sampling.make(temperature=temperature)
    stream = PromptStream(
      ListSource(problems),
      seed=0,
      prompts_per_draw=prompts_at_once,
      tokenizer=tokenizer,
      max_prompt_length=max_prompt_length,
      shuffle=False,
      prefetch=0,
    )
    chunks = -(-len(problems) // prompts_at_once)
    self._batches = [next(stream) for _ in range(chunks)]
    stream.close()

  def compile(self, params: PyTree) -> None:
    """Runs both programs once, on rows without a prompt: they end at once."""
    batch = self._batches[0]
    empty = dataclasses.replace(batch, mask=np.zeros_like(batch.mask))
    self._sample(params, empty, 1, self._greedy)
    self._sample(params, empty, self._samples, self._sampled)

  def run(self, params: PyTree) -> Evaluation:
    """Evaluates the policy.

    Raises:
      RuntimeError: if a response could not be scored; a score of 0 would be a
        wrong figure.
    """
    pending, surprise, tokens = [], 0.0, 0
    for batch in self._batches:
      greedy = self._sample(params, batch, 1, self._greedy)
      sampled = self._sample(params, batch, self._samples, self._sampled)
      for samples, size in ((greedy, 1), (sampled, self._samples)):
        problems = [p for p in batch.problems for _ in range(size)]
        pending.append(
          self._scoring.submit(
            decode(self._tokenizer, samples),
            [problem.reference for problem in problems],
            sources=[problem.source for problem in problems],
            lengths=samples.response_mask.sum(axis=1).tolist(),
            shaping=False,
          )
        )
      surprise -= float(sampled.sampler_logprobs.sum())
      tokens += int(sampled.response_mask.sum())
    scores = [self._marks(scores) for scores in pending]
    count = len(self._problems)
    greedy = np.concatenate(scores[0::2])[:count]
    correct = np.concatenate(scores[1::2]).reshape(-1, self._samples)[:count]
    return Evaluation(
      prompts=tuple(problem.prompt for problem in self._problems),
      greedy=greedy >= 1,
      correct=correct >= 1,
      entropy=surprise / max(tokens, 1),
    )

  def _sample(
    self, params: PyTree, batch: PromptBatch, size: int, sampling: Sampling
  ) -> Any:
    ids = (batch.indices[:, None] * size + np.arange(size)).reshape(-1)
    samples = self._engine.sample(
      params,
      batch.tokens,
      batch.mask,
      group_size=size,
      key=self._key,
      sequence_ids=ids.astype(np.int32),
      sampling=sampling,
    )
    return jax.device_get(samples)

  def _marks(self, pending: PendingScores) -> Float[np.ndarray, ' N']:
    scores = pending.result()
    marks = np.array(scores.marks())
    failed = int(np.isnan(marks).sum())
    if failed:
      raise RuntimeError(
        f'evaluation needs every response scored, {failed} of {len(marks)} '
        f'were not: {scores.failures()[0]}'
      )
    return marks
