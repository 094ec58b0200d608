# SPDX-License-Identifier: Apache-2.0
"""From prompts to an iteration's training data."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree

from covrl.config import Config
from covrl.data import PromptBatch, PromptStream, StreamState
from covrl.data.packing import prompt_width
from covrl.parallel import distributed
from covrl.rewards import TOTAL, Scoring
from covrl.rollout import Sampling, SamplingEngine
from covrl.rollout.score import ScoredRollouts, collect
from covrl.tasks.task import Task
from covrl.train.compiled import Programs
from covrl.train.forward import PolicyStats
from covrl.train.rollout_batch import (
  Iteration,
  blank_iteration,
  effective_groups,
  informative_groups,
  of_rollouts,
  rollout_metrics,
  unscored_batch,
)
from covrl.types import Rollouts, TokenBatch, TrainState

Draw = tuple[Rollouts, TokenBatch, PolicyStats]


class Collector:
  """Draws prompts, samples responses, has them scored, completes the rows."""

  def __init__(
    self,
    task: Task,
    engine: SamplingEngine,
    scoring: Scoring,
    programs: Programs,
    config: Config,
    key: Key[Array, ''],
  ) -> None:
    """Opens the stream of prompts.

    Args:
      task: its problems.
      engine: the sampler.
      scoring: the rewards.
      programs: give the trainer's statistics of sampled tokens, and advantages.
      config: sizes.
      key: of all sampling.
    """
    self._config = config
    self._engine = engine
    self._scoring = scoring
    self._programs = programs
    self._tokenizer = task.tokenizer
    self._sources = task.train.names
    self._key = key
    self._sampling = Sampling.make(
      config.rollout.temperature, config.rollout.top_p, config.rollout.top_k
    )
    self._prompts = PromptStream(
      task.train,
      seed=config.seed,
      prompts_per_draw=config.rollout.prompts_per_iteration,
      tokenizer=task.tokenizer,
      max_prompt_length=config.rollout.max_prompt_length,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )

  @property
  def place(self) -> StreamState:
    """Where the stream of prompts stands."""
    return self._prompts.get_state()

  @place.setter
  def place(self, state: StreamState) -> None:
    self._prompts.set_state(state)

  def check(self) -> None:
    """Refuses prompts that cannot be used, before anything is trained."""
    start = self.place
    next(self._prompts)
    self.place = start

  def compile(self, params: PyTree) -> None:
    """Compiles the sampler and warms the scorers."""
    blank, rollout = self._blank_prompts(), self._config.rollout
    self._engine.sample(
      params,
      blank.tokens,
      blank.mask,
      group_size=rollout.responses_per_prompt,
      key=self._key,
      sequence_ids=np.arange(
        self._config.sequences_per_iteration, dtype=np.int32
      ),
      sampling=self._sampling,
    )
    jax.random.fold_in(self._key, 0)
    self._scoring.warm()

  def collect(self, number: int, state: TrainState) -> Iteration:
    """Samples, scores and completes an iteration's training data.

    With `rollout.max_draws` above 1 prompts are drawn until enough groups have
    responses of different reward, or as often as allowed; what is then missing
    is masked out.

    Args:
      number: of the iteration.
      state: whose policy samples.

    Raises:
      RuntimeError: if scoring failed for more responses than is allowed.
    """
    config, clock = self._config, _Clock()
    most = config.rollout.max_draws
    draws: list[Draw] = []
    results: list[ScoredRollouts] = []
    for place in range(most):
      draw, result = self._draw(number, number * most + place, state, clock)
      draws.append(draw)
      results.append(result)
      if self._informative(draws) >= config.rollout.prompts_per_iteration:
        break
    outcomes = outcome_metrics(
      results, number, most_failures=config.rewards.max_failures
    )
    rollouts, batch, scored = _joined(draws)
    metrics = rollout_metrics(rollouts, scored, sources=self._sources)
    metrics |= outcomes | {'draws': float(len(draws))}
    if most > 1:
      rollouts, batch, scored = self._chosen((rollouts, batch, scored))
    advantages = self._programs.advantages(
      np.asarray(rollouts.rewards[TOTAL]), effective_groups(rollouts)
    )
    return of_rollouts(
      rollouts,
      batch,
      advantages,
      scored,
      seed=config.seed,
      iteration=number,
      metrics=metrics | clock.laps,
    )

  def blank(self) -> Iteration:
    """An iteration of the run's shapes, all padding."""
    return blank_iteration(
      self._config.sequences_per_iteration,
      row_width(self._config),
      reference=self._config.train.keep_reference,
    )

  def close(self) -> None:
    """Stops the threads that prepare prompts."""
    self._prompts.close()

  def _draw(
    self, number: int, place: int, state: TrainState, clock: _Clock
  ) -> tuple[Draw, ScoredRollouts]:
    """One draw of prompts, and how its responses were judged."""
    prompts, params = next(self._prompts), self._programs.params(state)
    clock.lap('prompts')
    pending = collect(
      self._engine,
      params,
      prompts,
      self._scoring,
      self._tokenizer,
      group_size=self._config.rollout.responses_per_prompt,
      key=jax.random.fold_in(self._key, number),
      first_sequence=place * self._config.sequences_per_iteration,
      step=int(state.step),
      sampling=self._sampling,
    )
    clock.lap('sample')
    # The device scores the tokens while workers score the responses.
    batch = unscored_batch(pending.rollouts)
    scored = distributed.run(self._programs.score, params, batch)
    if self._config.train.keep_reference:
      stats, _ = distributed.run(
        self._programs.score, self._programs.reference(state), batch
      )
      batch = dataclasses.replace(batch, ref_logprobs=stats.logprobs)
    clock.lap('score')
    result = pending.result()
    clock.lap('rewards')
    return (result.rollouts, batch, scored), result

  def _informative(self, draws: list[Draw]) -> int:
    """Groups so far whose responses have different rewards."""
    size = self._config.rollout.responses_per_prompt
    return sum(
      int(informative_groups(rollouts, size).sum()) for rollouts, _, _ in draws
    )

  def _chosen(self, draw: Draw) -> Draw:
    """The groups to train on, the first informative ones before all others."""
    rollout = self._config.rollout
    informative = informative_groups(draw[0], rollout.responses_per_prompt)
    groups = np.argsort(~informative, kind='stable')
    groups = np.sort(groups[: rollout.prompts_per_iteration])
    members = np.arange(rollout.responses_per_prompt)
    rows = groups[:, None] * rollout.responses_per_prompt + members
    rollouts, batch, scored = jax.tree.map(lambda x: x[rows.ravel()], draw)
    counts = informative[groups].repeat(rollout.responses_per_prompt)
    rollouts = dataclasses.replace(
      rollouts, loss_mask=rollouts.loss_mask & counts[:, None]
    )
    return rollouts, batch, scored

  def _blank_prompts(self) -> PromptBatch:
    """Prompts of the run's shape, all padding."""
    width = prompt_width(self._config.rollout.max_prompt_length)
    count = self._config.rollout.prompts_per_iteration
    return PromptBatch(
      problems=(),
      tokens=np.zeros((count, width), np.int32),
      mask=np.zeros((count, width), bool),
      indices=np.arange(count),
      source_ids=np.zeros(count, np.int32),
      draw=0,
    )


def row_width(config: Config) -> int:
  """Tokens of a row: a prompt's and a response's."""
  rollout = config.rollout
  return prompt_width(rollout.max_prompt_length) + rollout.max_response_length


def outcome_metrics(
  results: Sequence[ScoredRollouts], iteration: int, *, most_failures: float
) -> dict[str, float]:
  """How often there was which outcome; too many failures stop the run.

  Args:
    results: of an iteration's draws.
    iteration: its number.
    most_failures: share of the responses that may be masked for want of a score.

  Raises:
    RuntimeError: more are; it names what failed most often.
  """
  sizes = [len(result.rollouts.loss_mask) for result in results]
  failed = sum(result.masked for result in results) / sum(sizes)
  if failed > most_failures:
    reasons = Counter(r for result in results for r in result.failures)
    raise RuntimeError(
      f'at most {most_failures:.0%} of the responses may fail to be scored '
      f'(rewards.max_failures), {failed:.0%} did in iteration {iteration}, most '
      f'often so: {reasons.most_common(1)[0][0]}'
    )
  counts: Counter[str] = Counter()
  for result in results:
    counts.update(result.counts)
  return {'reward_failures': failed} | {
    f'outcomes/{name}': float(count) for name, count in counts.items()
  }


def _joined(draws: list[Draw]) -> Draw:
  return jax.tree.map(lambda *parts: np.concatenate(parts), *draws)


class _Clock:
  """Seconds per phase."""

  def __init__(self) -> None:
    self.laps: dict[str, float] = {}
    self._last = time.monotonic()

  def lap(self, name: str) -> None:
    """Ends a phase."""
    now, name = time.monotonic(), f'time/{name}'
    self.laps[name] = self.laps.get(name, 0.0) + now - self._last
    self._last = now
