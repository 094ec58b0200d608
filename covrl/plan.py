# SPDX-License-Identifier: Apache-2.0
"""What a run will be, told before anything is rented or trained.

Sizes, prompts as the policy will see them, what their reference answers earn,
memory, and time. Counts are exact; memory leaves out activations, and time is
an estimate from what chips can do at best (`covrl compile` knows more).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jaxtyping import PyTree

from covrl import sharding
from covrl.config import Config, ConfigError, Recipe
from covrl.data import Problem
from covrl.models import ModelConfig, Policy
from covrl.rewards import Scoring
from covrl.topologies import Topology
from covrl.train import Task
from covrl.train.beginning import policy_of
from covrl.train.programs import Algorithm, Programs

# Shares of a chip's peak that good programs reach: an assumption.
_OF_FLOPS = 0.4
_OF_BANDWIDTH = 0.6
_SHOWN = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
  """Bytes that a run holds all the time, on all devices together.

  Attributes:
    params: of the policy that is trained.
    frozen: of the reference policy.
    optimiser: the parameter chain's state.
    gradients: of an update, in float32 where they are accumulated.
    cache: keys and values of an iteration's responses at full length.
  """

  params: int
  frozen: int
  optimiser: int
  gradients: int
  cache: int

  @property
  def training(self) -> int:
    """While an update is made."""
    return self.params + self.frozen + self.optimiser + self.gradients

  @property
  def sampling(self) -> int:
    """While responses are decoded."""
    return self.params + self.frozen + self.optimiser + self.cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seconds:
  """Estimated seconds of an iteration at full response length.

  Attributes:
    sampling: bound by reading weights and cache.
    scoring: one forward of all tokens.
    training: all updates.
  """

  sampling: float
  scoring: float
  training: float

  @property
  def iteration(self) -> float:
    """All of them."""
    return self.sampling + self.scoring + self.training


def plan(
  recipe: Recipe, topology: Topology | None = None, num_slices: int = 1
) -> Iterator[str]:
  """The lines of a plan.

  Args:
    recipe: a config file with overrides applied.
    topology: the slice it shall run on; without one there is no estimate.
    num_slices: how many of them.

  Raises:
    ConfigError: a reference answer does not earn the reward 1.
  """
  if num_slices < 1:
    raise ConfigError(f'--num-slices must be at least 1, got {num_slices}')
  config, module = recipe.config, recipe.module
  task: Task = module.make_task(config)
  policy = policy_of(recipe, task)
  yield f'{recipe.name}: {policy.num_params:,} parameters'
  yield from _sizes(config)
  yield from _examples(config, task)
  memory = needed(recipe, policy)
  chips = topology.chips * num_slices if topology else 1
  where = f'{chips:,} × {topology.chip.name}' if topology else 'all devices'
  yield f'memory without activations, {where}:'
  for field in dataclasses.fields(memory):
    size = getattr(memory, field.name)
    yield f'  {field.name:10} {_bytes(size)}' + (
      f', {_bytes(size / chips)} a chip' if topology else ''
    )
  if topology is None:
    yield 'give --topology (such as v5p-64) for what fits and how long it takes'
    return
  most = max(memory.training, memory.sampling) / chips
  fits = 'may fit' if most <= topology.chip.hbm else 'DOES NOT FIT'
  yield (
    f'  {fits}: {_bytes(most)} of {_bytes(topology.chip.hbm)} a chip, if the '
    'mesh splits everything'
  )
  seconds = estimate(config, policy, memory, topology, num_slices)
  yield (
    f'estimate, not measured ({_OF_FLOPS:.0%} of the peak FLOP/s, '
    f'{_OF_BANDWIDTH:.0%} of the bandwidth, full-length responses):'
  )
  for field in dataclasses.fields(seconds):
    yield f'  {field.name:10} {getattr(seconds, field.name):,.3g} s'
  hours = seconds.iteration * config.train.iterations / 3600
  yield (
    f'  an iteration {seconds.iteration:,.3g} s, the run {hours:,.3g} hours '
    'without warm start, evaluation and compilation'
  )


def needed(recipe: Recipe, policy: Policy) -> Memory:
  """Bytes of a recipe's state, from shapes alone."""
  config, module = recipe.config, recipe.module
  algorithm = Algorithm(
    loss=module.make_loss(config),
    token_tx=module.make_token_tx(config),
    tx=module.make_tx(config),
    advantages=module.make_advantages(config),
  )
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  state = Programs(policy, algorithm, config, mesh).abstract_state()
  return Memory(
    params=_size(state.trainable),
    frozen=_size(state.frozen),
    optimiser=_size(state.opt_state),
    gradients=4 * policy.num_params,
    cache=_cache(config, policy.config),
  )


def estimate(
  config: Config,
  policy: Policy,
  memory: Memory,
  topology: Topology,
  num_slices: int,
) -> Seconds:
  """Seconds of an iteration, from what chips can do at best.

  A forward takes 2 N operations a token, a backward 4 N; attention's products
  are left out. Each decoding step reads the weights once and, on average, half
  of the responses' cache.
  """
  chips = topology.chips * num_slices
  flops = topology.chip.flops * chips * _OF_FLOPS
  bandwidth = topology.chip.bandwidth * chips * _OF_BANDWIDTH
  tokens = (
    config.rollout.max_draws * config.sequences_per_iteration * _width(config)
  )
  trained = config.sequences_per_iteration * _width(config)
  forward = 2 * policy.num_params
  forwards = 2 if config.train.keep_reference else 1
  step = (memory.params + memory.cache / 2) / bandwidth
  steps = config.rollout.max_response_length * config.rollout.max_draws
  return Seconds(
    sampling=steps * step,
    scoring=forwards * forward * tokens / flops,
    training=3 * forward * trained / flops,
  )


def _sizes(config: Config) -> Iterator[str]:
  rollout = config.rollout
  response = config.train.sequences_per_update * rollout.max_response_length
  yield (
    f'{config.train.iterations:,} iterations of '
    f'{rollout.prompts_per_iteration:,} prompts × '
    f'{rollout.responses_per_prompt:,} responses, '
    f'{config.updates_per_iteration:,} updates each of '
    f'{config.train.sequences_per_update:,} sequences in '
    f'{config.train.micro_batches:,} parts; {config.total_updates:,} updates'
  )
  yield (
    f'an update: at most {config.train.sequences_per_update * _width(config):,}'
    f' tokens, {response:,} of them of responses (up to '
    f'{rollout.max_prompt_length:,} + {rollout.max_response_length:,})'
  )
  yield (
    'selected of them where the token chain takes entropy.fraction = '
    f'{config.entropy.fraction:g}: at most '
    f'{math.floor(config.entropy.fraction * response):,}'
  )


def _examples(config: Config, task: Task) -> Iterator[str]:
  """Prompts as the policy will see them, and what right answers earn."""
  problems = [task.train[n] for n in range(min(_SHOWN, len(task.train)))]
  known = [(p, task.right_response(p)) for p in problems]
  marks = _marks(config, task, [(p, r) for p, r in known if r is not None])
  for problem, response in known:
    yield f'prompt ({len(task.tokenizer.encode(problem.prompt))} tokens):'
    yield from (f'  | {line}' for line in problem.prompt.splitlines())
    if response is None:
      yield '  no reference answer is known'
      continue
    mark = marks.pop(0)
    yield f'  reference answer {response!r}: reward {mark:g}'
    if mark != 1:
      raise ConfigError(
        f'reference answers must earn the reward 1, that to {problem.prompt!r} '
        f'earns {mark:g}'
      )


def _marks(
  config: Config, task: Task, answers: Sequence[tuple[Problem, str]]
) -> list[float]:
  """What right responses earn, relative to full marks."""
  with Scoring(
    task.rewards,
    sources=task.sources,
    workers=1,
    timeout=config.rewards.timeout,
  ) as scoring:
    pending = scoring.submit(
      [response for _, response in answers],
      [problem.reference for problem, _ in answers],
      sources=[problem.source for problem, _ in answers],
      lengths=[1] * len(answers),
      shaping=False,
    )
    return pending.result().marks()


def _width(config: Config) -> int:
  """Tokens of a sequence that are read, at most."""
  rollout = config.rollout
  return rollout.max_prompt_length + rollout.max_response_length - 1


def _cache(config: Config, model: ModelConfig) -> int:
  per_token = 2 * model.num_layers * model.num_kv_heads * model.head_dim
  bits = jax.numpy.dtype(model.dtype).itemsize
  return config.sequences_per_iteration * _width(config) * per_token * bits


def _size(tree: PyTree) -> int:
  leaves: list[Any] = jax.tree.leaves(tree)
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def _bytes(size: float) -> str:
  """Bytes as people read them.

  >>> _bytes(1536), _bytes(3 * 2**30)
  ('1.5 KiB', '3.0 GiB')
  """
  units = ('B', 'KiB', 'MiB', 'GiB', 'TiB')
  power = min(int(math.log(max(size, 1), 1024)), len(units) - 1)
  return f'{size / 1024**power:.1f} {units[power]}'
