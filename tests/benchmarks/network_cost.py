# SPDX-License-Identifier: Apache-2.0
"""Time that a network beside the policy adds to the training part of an iteration.

    python tests/benchmarks/network_cost.py

Three things are timed in turn, on the same rows and in core seconds, which a busy
machine changes less: the training part of an iteration of a recipe with a second
network (scoring, credit, updates); that of the same recipe without it; and the
bare compiled programs of the network on rows that are on the device, one forward
over the iteration and one forward and backward per update. The first should be at
most a tenth longer than the sum of the others.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from covrl.config import Config, CriticConfig, PrimeConfig, Recipe, load
from covrl.parallel import sharding
from covrl.train.algorithm import Algorithm
from covrl.train.compiled import CompiledPrograms
from covrl.train.forward import with_old_stats
from covrl.train.rollout_batch import RolloutBatch, padding_batch, row_width
from covrl.train.setup.initial_policy import make_policy
from covrl.types import TrainState

RECIPES = ('countdown:ppo', 'countdown:prime')
# Without a warm-up of the critic the policy is updated from the first step on.
OVERRIDES = ('--config.critic.warm_up=0',)


class Training:
  """The training part of a recipe's iterations, without sampling.

  Args:
    recipe: the recipe.
    seed: seed of parameters and rows.
  """

  def __init__(self, recipe: Recipe, seed: int = 0) -> None:
    self.config: Config = recipe.config
    task = recipe.task(self.config)
    policy = make_policy(recipe, task.tokenizer)
    self.mesh = sharding.make_mesh()
    self.programs = CompiledPrograms(
      policy, Algorithm.from_recipe(recipe), self.config, self.mesh
    )
    params = policy.init(jax.random.key(seed), self.mesh)
    self.state: TrainState = self.programs.init_state(params)
    self.rollout = self._random_rollout(task.tokenizer.vocab_size, seed)
    self.programs.compile(self.state, self.rollout.batch)

  def run(self) -> None:
    """Scores, assigns credit and makes all updates of one iteration."""
    programs, state = self.programs, self.state
    # Rows are sampled without credit, and scored before there is a reference.
    batch = dataclasses.replace(self.rollout.batch, network_targets={})
    batch_without_reference = dataclasses.replace(batch, ref_logprobs=None)
    if self.config.scores_rollouts:
      scored = programs.score(programs.params(state), batch_without_reference)
      batch = with_old_stats(batch, jax.device_get(scored))
    if self.config.train.keep_reference:
      stats, _ = programs.score(
        programs.reference(state), batch_without_reference
      )
      logprobs: Any = np.asarray(stats.logprobs)
      batch = dataclasses.replace(batch, ref_logprobs=logprobs)
    rollout = dataclasses.replace(self.rollout, batch=batch)
    state, rollout = programs.assign_credit(state, rollout)
    size, key = self.config.train.sequences_per_update, jax.random.key(1)
    for update in range(self.config.updates_per_iteration):
      rows = rollout.update_rows(update, size)
      state, _ = programs.update(state, rows, update == 0, key)
    self.state = jax.block_until_ready(state)

  def network_programs(self) -> Callable[[], None]:
    """Returns a function that runs the programs of networks beside the policy."""
    networks, batch = self.programs.networks, self.rollout.batch
    size = self.config.train.sequences_per_update
    full_batch = sharding.shard_batch(
      dataclasses.replace(batch, network_targets={}), self.mesh
    )
    update_batches = [
      sharding.shard_batch(self.rollout.update_rows(update, size), self.mesh)
      for update in range(self.config.updates_per_iteration)
    ]
    compiled = [
      (
        networks.trace_score(name, batch).lower().compile(),
        networks.trace_update(name, batch, size).lower().compile(),
        jax.tree.map(jnp.copy, self.state.networks[name]),
      )
      for name in networks.names
    ]

    def run() -> None:
      for index, (score, update, state) in enumerate(compiled):
        jax.block_until_ready(score(state.params, full_batch))
        for rows in update_batches:
          state, _ = update(state, rows)
        compiled[index] = score, update, jax.block_until_ready(state)

    return run

  def _random_rollout(self, vocab_size: int, seed: int) -> RolloutBatch:
    """Random rows of full length, with rewards of 0 and 1."""
    config, rng = self.config, np.random.default_rng(seed)
    count, width = config.sequences_per_iteration, row_width(config)
    padding_rollout = padding_batch(
      count,
      width,
      reference=config.train.keep_reference,
      target_names=self.programs.networks.target_names,
      has_filtered_logprobs=self.programs.has_filtered_logprobs,
    )
    shape, first_response_column = (
      (count, width),
      width - config.rollout.max_response_length,
    )
    columns = np.broadcast_to(np.arange(width, dtype=np.int32), shape)
    tokens = rng.integers(0, vocab_size, shape).astype(np.int32)
    mask = (columns >= first_response_column - 1) & (columns < width - 1)
    arrays: dict[str, Any] = {
      'tokens': tokens,
      'targets': np.roll(tokens, -1, axis=1),
      'positions': columns,
      'segment_ids': np.ones(shape, np.int32),
      'loss_mask': mask,
      'weights': mask.astype(np.float32),
      'advantages': (mask * rng.normal(size=(count, 1))).astype(np.float32),
      'sequence_ids': np.broadcast_to(np.arange(count)[:, None], shape).astype(
        np.int32
      ),
    }
    groups = np.arange(count) // config.rollout.responses_per_prompt
    return dataclasses.replace(
      padding_rollout,
      batch=dataclasses.replace(padding_rollout.batch, **arrays),
      rewards=rng.integers(0, 2, count).astype(np.float32),
      groups=groups.astype(np.int32),
    )


def seconds(run: Callable[[], None]) -> float:
  """Core seconds of one call."""
  began = time.process_time()
  run()
  return time.process_time() - began


def measure(spec: str, overrides: list[str], repeats: int) -> str:
  """Times a recipe with and without its network; returns a row of the table."""
  recipe = load(spec, [*OVERRIDES, *overrides])
  # Sections of networks that a recipe lacks must have their defaults.
  config = dataclasses.replace(
    recipe.config, critic=CriticConfig(), prime=PrimeConfig()
  )
  without_network = dataclasses.replace(
    recipe,
    config=config,
    networks=lambda config: {},
    estimator=lambda config: None,
  )
  with_network, policy_only = Training(recipe), Training(without_network)
  runs = (
    with_network.run,
    policy_only.run,
    with_network.network_programs(),
  )
  for run in runs:
    run()
  times = [[seconds(run) for run in runs] for _ in range(repeats)]
  iteration, policy, network = (
    statistics.median(column) for column in zip(*times, strict=True)
  )
  excess = [100 * (a / (b + c) - 1) for a, b, c in times]
  return (
    f'| `{spec}` | {iteration:.2f} | {policy:.2f} | {network:.2f} |'
    f' {statistics.median(excess):+.1f} ({min(excess):+.1f} to {max(excess):+.1f}) |'
  )


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--repeats', type=int, default=7)
  parser.add_argument('--prompts', type=int, default=32)
  parser.add_argument('recipes', nargs='*', default=RECIPES)
  arguments = parser.parse_args()
  overrides = [f'--config.rollout.prompts_per_iteration={arguments.prompts}']
  print('| recipe | iteration | policy | network | more, % |')
  print('|---|---:|---:|---:|---:|')
  for spec in arguments.recipes:
    print(measure(spec, overrides, arguments.repeats), flush=True)


if __name__ == '__main__':
  main()
