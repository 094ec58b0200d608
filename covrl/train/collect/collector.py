# SPDX-License-Identifier: Apache-2.0
"""Collects an iteration's training data: prompts to scored rollouts.

With `rollout.pipeline`, the next iteration's responses are sampled before those
of the current one are waited for: workers score them while the policy is
updated. An older policy samples them, so that importance weights are needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree

from covrl.config import Config
from covrl.data import StreamState
from covrl.data.packing import prompt_width
from covrl.parallel import distributed
from covrl.rewards import TOTAL, Scoring
from covrl.rollout import GroupEngine, Sampling, SamplingEngine
from covrl.rollout.score import (
  PendingRollouts,
  ScoredRollouts,
  collect_rollouts,
  resubmit,
)
from covrl.tasks.task import Task
from covrl.train.collect.draws import (
  Draw,
  concatenate_draws,
  problems_of,
  prompt_stream,
  score_draw,
  score_tokens,
  select_groups,
)
from covrl.train.collect.dynamic_sampling import DynamicSampling
from covrl.train.collect.group_filter import GroupFilter
from covrl.train.collect.partial_rollouts import (
  NO_GROUP,
  GroupsInFlight,
  PartialRollouts,
)
from covrl.train.collect.phase_timer import PhaseTimer
from covrl.train.collect.rollout_metrics import (
  outcome_metrics,
  rollout_metrics,
  sampler_metrics,
)
from covrl.train.compiled import CompiledPrograms
from covrl.train.rollout_batch import (
  RolloutBatch,
  baseline_groups,
  make_rollout_batch,
  padding_batch,
  row_width,
  shift_left,
  zero_lone_advantages,
  zero_rollouts,
)
from covrl.types import TrainState


class CollectorState(NamedTuple):
  """State of a collector between iterations.

  Attributes:
    prompts: position in the stream of prompts.
    ahead: responses that are sampled for the next iteration, if any.
    carried: groups that are carried over, if any.
  """

  prompts: StreamState
  ahead: PendingRollouts | None
  carried: GroupsInFlight | None


class RolloutCollector:
  """Draws prompts, samples and scores responses, and assembles the rows."""

  def __init__(
    self,
    task: Task,
    engine: SamplingEngine,
    scoring: Scoring,
    programs: CompiledPrograms,
    config: Config,
    key: Key[Array, ''],
    group_engine: GroupEngine | None = None,
  ) -> None:
    """Opens the stream of prompts.

    Args:
      task: provides problems and tokenizer.
      engine: samples responses.
      scoring: computes rewards in worker processes.
      programs: compute advantages and the trainer's statistics of the tokens.
      config: the run's configuration.
      key: PRNG key of all rollouts.
      group_engine: samples responses in place of `engine`, if prompts are
        admitted by free slots.
    """
    self._config = config
    self._engine = engine
    self._scoring = scoring
    self._programs = programs
    self._tokenizer = task.tokenizer
    self._sources = task.train.names
    self._filter = GroupFilter.from_config(config)
    self._ahead: PendingRollouts | None = None
    self._carried: GroupsInFlight | None = None
    self._partial = PartialRollouts(engine, scoring, task.tokenizer, config)
    self._group_engine, self._dynamic = group_engine, None
    if group_engine is not None:
      self._dynamic = DynamicSampling(
        group_engine, scoring, task.tokenizer, config
      )
    self._key, self._prompts = key, prompt_stream(task, config)
    rollout = config.rollout
    self._sampling = Sampling.make(
      rollout.temperature, rollout.top_p, rollout.top_k, rollout.min_p
    )

  @property
  def state(self) -> CollectorState:
    """The state between iterations."""
    prompts = self._prompts.get_state()
    return CollectorState(prompts, self._ahead, self._carried)

  @state.setter
  def state(self, state: CollectorState) -> None:
    self._prompts.set_state(state.prompts)
    self._ahead, self._carried = state.ahead, state.carried

  def restore(
    self,
    prompts: StreamState,
    ahead: Mapping[str, Any] | None,
    carried: Mapping[str, Any] | None,
  ) -> None:
    """Restores the state of a checkpoint.

    Args:
      prompts: see `CollectorState`.
      ahead: see `PendingRollouts.arrays`; their responses are scored again.
      carried: see `GroupsInFlight.arrays`; finished responses are scored again.
    """
    pending, groups = None, None
    draw_size = self._config.rollout.prompts_per_iteration
    if ahead is not None:
      ids = ahead['group_ids']
      local = distributed.process_slice(len(ids))
      problems = problems_of(self._prompts, draw_size, ids[local])
      pending = resubmit(ahead, problems, self._scoring, self._tokenizer)
    if carried is not None:
      ids = carried['group_ids']
      group_ids = ids[ids != NO_GROUP]
      problems = iter(problems_of(self._prompts, draw_size, group_ids))
      groups = self._partial.restore(
        carried, [None if i == NO_GROUP else next(problems) for i in ids]
      )
    self.state = CollectorState(prompts, pending, groups)

  def check_prompts(self) -> None:
    """Draws prompts once, so that unusable ones raise before training."""
    start = self.state
    next(self._prompts)
    self.state = start

  def compile(self, params: PyTree) -> None:
    """Compiles the sampler."""
    rollout = self._config.rollout
    jax.random.fold_in(self._key, 0)  # Compiles it, too.
    if self._group_engine is not None:
      self._group_engine.warm_up(params)
      return
    self._engine.warm_up(
      params,
      (
        rollout.prompts_per_iteration + rollout.carried_groups,
        prompt_width(rollout.max_prompt_length),
      ),
      group_size=rollout.responses_per_prompt,
      carries=rollout.carried_groups > 0,
    )

  def collect(self, iteration: int, state: TrainState) -> RolloutBatch:
    """Samples, scores and assembles an iteration's training data.

    With `rollout.max_draws` above 1, prompts are drawn until enough groups pass
    the filters (`GroupFilter`) or the draws are used up. Other groups then take
    the place of missing ones, trained on (`rollout.fill_groups`) or masked out.

    Args:
      iteration: index of the iteration.
      state: the training state, with the policy to sample from.

    Raises:
      RuntimeError: scoring failed for more responses than allowed, or no group
        passes the filters.
    """
    config, timer = self._config, PhaseTimer()
    ahead = None
    if self._dynamic is not None:
      draw, metrics = self._draw_by_slots(
        self._dynamic, iteration, state, timer
      )
    else:
      pending = self._ahead or self._sample(iteration, iteration, state, timer)
      if config.rollout.pipeline and iteration + 1 < config.train.iterations:
        ahead = self._sample(iteration + 1, iteration, state, timer)
      draw, metrics = self._draw(pending, iteration, state, timer)
    rollouts, batch, policy_stats = draw
    rewards = np.asarray(rollouts.rewards[TOTAL])
    advantages = np.zeros_like(rewards)
    if not self._programs.networks.estimates_advantages:
      groups, mask = baseline_groups(rollouts), shift_left(rollouts.loss_mask)
      advantages = zero_lone_advantages(
        self._programs.advantages(rewards, groups, mask), rollouts
      )
    self._ahead = ahead
    return make_rollout_batch(
      rollouts,
      batch,
      advantages,
      policy_stats,
      seed=config.seed,
      iteration=iteration,
      metrics=metrics | timer.seconds,
    )

  def _draw(
    self,
    pending: PendingRollouts,
    iteration: int,
    state: TrainState,
    timer: PhaseTimer,
  ) -> tuple[Draw, dict[str, float]]:
    """Draws whole batches of prompts until enough groups pass the filters.

    Args:
      pending: responses to the first draw.
      iteration: index of the iteration.
      state: the training state, with the policy to sample from.
      timer: accumulates the seconds of each phase.

    Returns:
      The groups to train on, and the metrics of all that were drawn.
    """
    rollout = self._config.rollout
    draws: list[Draw] = []
    results: list[ScoredRollouts] = []
    for draw_index in range(rollout.max_draws):
      if draw_index > 0:
        pending = self._sample(iteration, iteration, state, timer, draw_index)
      draw, result = score_draw(
        self._programs, self._config, pending, state, timer
      )
      draws.append(draw)
      results.append(result)
      passed = sum(
        self._filter.passes(rollouts).sum() for rollouts, _, _ in draws
      )
      if passed >= rollout.prompts_per_iteration:
        break
    outcomes = outcome_metrics(
      results, iteration, max_failures=self._config.rewards.max_failures
    )
    rollouts, batch, policy_stats = concatenate_draws(draws)
    metrics = rollout_metrics(
      rollouts, policy_stats, sources=self._sources, step=int(state.step)
    )
    metrics |= outcomes | {'draws': float(len(draws))}
    if not self._filter.is_active:
      return (rollouts, batch, policy_stats), metrics
    chosen = self._filter.choose(rollouts, iteration)
    batch, policy_stats = jax.tree.map(
      lambda x: x[chosen.rows], (batch, policy_stats)
    )
    draw = select_groups(rollouts, chosen), batch, policy_stats
    return draw, metrics | chosen.metrics

  def _draw_by_slots(
    self,
    dynamic: DynamicSampling,
    iteration: int,
    state: TrainState,
    timer: PhaseTimer,
  ) -> tuple[Draw, dict[str, float]]:
    """Draws prompts as slots are free until enough groups pass the filters.

    Returns:
      The groups to train on, and the metrics of all groups up to the last one
      of these.
    """
    config = self._config
    drawn = dynamic.sample(
      self._prompts,
      self._programs.params(state),
      step=int(state.step),
      first_sequence=iteration
      * config.rollout.max_draws
      * config.sequences_per_iteration,
      key=jax.random.fold_in(self._key, iteration),
      sampling=self._sampling,
    )
    timer.lap('sample')
    rollouts = drawn.result.rollouts
    metrics = outcome_metrics(
      [drawn.result], iteration, max_failures=config.rewards.max_failures
    )
    metrics |= {'draws': float(drawn.draws)} | rollout_metrics(
      rollouts, None, sources=self._sources, step=int(state.step)
    )
    chosen = self._filter.choose(rollouts, iteration)
    rollouts = select_groups(rollouts, chosen)
    batch, policy_stats = score_tokens(self._programs, config, rollouts, state)
    timer.lap('score')
    if policy_stats is not None:
      metrics |= sampler_metrics(rollouts, policy_stats)
    return (rollouts, batch, policy_stats), metrics | chosen.metrics

  def padding_batch(self) -> RolloutBatch:
    """Returns a batch of padding in the shapes of the run's data."""
    return padding_batch(
      self._config.sequences_per_iteration,
      row_width(self._config),
      reference=self._config.train.keep_reference,
      target_names=self._programs.networks.target_names,
      has_filtered_logprobs=self._programs.has_filtered_logprobs,
      experts=self._engine.experts,
    )

  def padding_groups(self) -> dict[str, Any]:
    """Returns arrays in the shapes of carried groups."""
    return self._partial.empty().arrays()

  def zero_rollouts(self) -> dict[str, np.ndarray]:
    """Returns arrays in the shapes of responses that are sampled ahead."""
    return zero_rollouts(
      self._config.sequences_per_iteration,
      row_width(self._config),
      self._engine.experts,
    )

  def close(self) -> None:
    """Stops the threads that prepare prompts."""
    self._prompts.close()

  def _sample(
    self,
    iteration: int,
    current_iteration: int,
    state: TrainState,
    timer: PhaseTimer,
    draw_index: int = 0,
  ) -> PendingRollouts:
    """Samples responses to one draw of prompts and submits them for scoring.

    Args:
      iteration: index of the iteration that trains on them.
      current_iteration: index of the current iteration.
      state: the training state, with the policy to sample from.
      timer: accumulates the seconds of each phase.
      draw_index: index of the draw in the iteration.
    """
    key = jax.random.fold_in(self._key, iteration)
    if self._config.rollout.carried_groups:
      pending, self._carried = self._partial.sample(
        self._carried,
        self._prompts,
        self._programs.params(state),
        step=int(state.step),
        current_iteration=current_iteration,
        iteration=iteration,
        key=key,
        sampling=self._sampling,
      )
      timer.lap('sample')
      return pending
    draw = iteration * self._config.rollout.max_draws + draw_index
    prompts, params = next(self._prompts), self._programs.params(state)
    timer.lap('prompts')
    pending = collect_rollouts(
      self._engine,
      params,
      prompts,
      self._scoring,
      self._tokenizer,
      group_size=self._config.rollout.responses_per_prompt,
      key=key,
      first_sequence=draw * self._config.sequences_per_iteration,
      step=int(state.step),
      sampling=self._sampling,
    )
    timer.lap('sample')
    return pending
