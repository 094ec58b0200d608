# SPDX-License-Identifier: Apache-2.0
"""Draws of prompts, their responses, and statistics of their tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from covrl.config import Config
from covrl.data import Problem, PromptBatch, PromptStream
from covrl.parallel import distributed
from covrl.rollout.score import PendingRollouts, ScoredRollouts
from covrl.tasks.task import Task
from covrl.train.collect.group_filter import ChosenGroups
from covrl.train.collect.phase_timer import PhaseTimer
from covrl.train.compiled import CompiledPrograms
from covrl.train.forward import PolicyStats
from covrl.train.rollout_batch import to_token_batch
from covrl.types import Rollouts, TokenBatch, TrainState

# Sampled responses, their tokens in training layout, and the policy's statistics
# of these (`None` unless the run scores rollouts).
Draw = tuple[Rollouts, TokenBatch, PolicyStats | None]


def prompt_stream(task: Task, config: Config) -> PromptStream:
  """Opens this process's stream of training prompts."""
  return PromptStream(
    task.train,
    seed=config.seed,
    prompts_per_draw=config.rollout.prompts_per_iteration,
    tokenizer=task.tokenizer,
    max_prompt_length=config.rollout.max_prompt_length,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )


def prompts_in_order(
  prompts: PromptStream, unused: int
) -> Iterator[tuple[PromptBatch, int]]:
  """Yields the next prompts as (draw, index in the draw).

  Args:
    prompts: the stream of prompts; draws are taken when they are needed.
    unused: prompts at the end of its last draw that were not used.
  """
  if unused:
    last = prompts.draw(prompts.get_state()['draw'] - 1)
    size = len(last.problems)
    yield from ((last, index) for index in range(size - unused, size))
  for batch in prompts:
    yield from ((batch, index) for index in range(len(batch.problems)))


def problems_of(
  prompts: PromptStream, draw_size: int, group_ids: Sequence[int]
) -> list[Problem]:
  """Returns this process's problems by their indices in the global order.

  Args:
    prompts: the stream of prompts.
    draw_size: prompts of a draw, over all processes.
    group_ids: the indices.
  """
  batches = map(prompts.draw, sorted({int(i) // draw_size for i in group_ids}))
  problem_by_index = {
    int(index): problem
    for batch in batches
    for index, problem in zip(batch.indices, batch.problems, strict=True)
  }
  return [problem_by_index[int(i)] for i in group_ids]


def score_tokens(
  programs: CompiledPrograms,
  config: Config,
  rollouts: Rollouts,
  state: TrainState,
) -> tuple[TokenBatch, PolicyStats | None]:
  """Computes the statistics of tokens that the run reads.

  They are those of the policy and of the reference policy.

  Args:
    programs: compute the statistics of the tokens.
    config: the run's configuration.
    rollouts: the sampled responses.
    state: the training state before the iteration's updates.
  """
  params = programs.params(state)
  batch, policy_stats = to_token_batch(rollouts), None
  if config.scores_rollouts:
    policy_stats = distributed.run_on_devices(programs.score, params, batch)
  if config.train.keep_reference:
    # The reference policy routes tokens by its own router.
    unrecorded_experts = jax.tree.map(np.zeros_like, batch.experts)
    stats, _ = distributed.run_on_devices(
      programs.score,
      programs.reference(state),
      dataclasses.replace(batch, experts=unrecorded_experts),
    )
    batch = dataclasses.replace(batch, ref_logprobs=stats.logprobs)
  return batch, policy_stats


def score_draw(
  programs: CompiledPrograms,
  config: Config,
  pending: PendingRollouts,
  state: TrainState,
  timer: PhaseTimer,
) -> tuple[Draw, ScoredRollouts]:
  """Scores tokens by the policy, and waits for the scores of responses.

  Args:
    programs: compute the statistics of the tokens.
    config: the run's configuration.
    pending: the sampled responses.
    state: the training state before the iteration's updates.
    timer: accumulates the seconds of each phase.
  """
  # The device scores the tokens while workers score the responses.
  batch, policy_stats = score_tokens(programs, config, pending.rollouts, state)
  timer.lap('score')
  result = pending.result()
  timer.lap('rewards')
  return (result.rollouts, batch, policy_stats), result


def concatenate_draws(draws: list[Draw]) -> Draw:
  """Concatenates the rows of draws, in order."""
  return jax.tree.map(lambda *parts: np.concatenate(parts), *draws)


def select_groups(rollouts: Rollouts, chosen: ChosenGroups) -> Rollouts:
  """Returns the rows of the chosen groups; dropped responses are masked."""
  rollouts = jax.tree.map(lambda x: x[chosen.rows], rollouts)
  loss_mask = rollouts.loss_mask & chosen.unmasked[:, None]
  return dataclasses.replace(rollouts, loss_mask=loss_mask)
