# SPDX-License-Identifier: Apache-2.0
"""What a run will need: from shapes alone, or from programs that were compiled.

Shapes say within seconds what is held all the time, and how long chips take at
best by an assumed share of their peak. `covrl compile` takes minutes and knows
activations and collectives; what it writes with `--json` is read here.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import jax
from etils import epath
from jaxtyping import PyTree

from covrl.config import Config, ConfigError, Recipe
from covrl.models import ModelConfig, Policy
from covrl.parallel import sharding
from covrl.parallel.topologies import Topology
from covrl.train.compiled import Algorithm, Programs

# Shares of a chip's peak that good programs reach: an assumption.
OF_FLOPS = 0.4
OF_BANDWIDTH = 0.6
# The parts of an iteration that compiled programs belong to.
_STAGES = {
  'prefill': 'sampling',
  'decode': 'sampling',
  'score': 'scoring',
  'train_step': 'training',
}


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


def needed(recipe: Recipe, policy: Policy) -> Memory:
  """Bytes of a recipe's state, from shapes alone."""
  config = recipe.config
  algorithm = Algorithm.of(recipe)
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
  flops = topology.chip.flops * chips * OF_FLOPS
  bandwidth = topology.chip.bandwidth * chips * OF_BANDWIDTH
  tokens = (
    config.rollout.max_draws
    * config.sequences_per_iteration
    * tokens_read(config)
  )
  trained = config.sequences_per_iteration * tokens_read(config)
  forward = 2 * policy.num_params
  forwards = 2 if config.train.keep_reference else 1
  step = (memory.params + memory.cache / 2) / bandwidth
  steps = config.rollout.max_response_length * config.rollout.max_draws
  return Seconds(
    sampling=steps * step,
    scoring=forwards * forward * tokens / flops,
    training=3 * forward * trained / flops,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
  """What `covrl compile --json` said of a recipe's programs.

  Attributes:
    fits: whether all of them do.
    fullest: the one that takes the most memory.
    peak: bytes of a chip that it takes.
    limit: bytes that it may take.
    seconds: of an iteration, at least: every program at its roofline.
  """

  fits: bool
  fullest: str
  peak: int
  limit: int
  seconds: Seconds


def read_compiled(
  file: epath.Path, recipe: Recipe, topology: Topology, num_slices: int
) -> Compiled:
  """Reads what `covrl compile --json` wrote.

  Args:
    file: it.
    recipe: what it must be of.
    topology: what it must be for.
    num_slices: likewise.

  Raises:
    ConfigError: it is of something else, or nothing that command wrote.
  """
  try:
    found = json.loads(file.read_text())
    programs: dict[str, dict[str, Any]] = found['programs']
    theirs = found['recipe'], found['topology'], found['num_slices']
    missing = [name for name in _STAGES if name not in programs]
    fullest = max(programs, key=lambda name: programs[name]['hbm_bytes'])
    seconds = dict.fromkeys(_STAGES.values(), 0.0)
    for name in _STAGES.keys() & programs.keys():
      each = programs[name]
      # Of a program that was too large for the compiler nothing is known.
      least = each['roofline_seconds']
      least = math.nan if least is None else least * each['calls']
      seconds[_STAGES[name]] += least
    compiled = Compiled(
      fits=bool(found['fits']),
      fullest=fullest,
      peak=int(programs[fullest]['hbm_bytes']),
      limit=int(programs[fullest]['hbm_limit_bytes']),
      seconds=Seconds(**seconds),
    )
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    raise ConfigError(
      f'--compiled must be what `covrl compile --json` wrote, {file} is not'
    ) from None
  ours = recipe.name, topology.name, num_slices
  if theirs != ours or missing:
    raise ConfigError(
      f'--compiled must be of {ours[0]} on {ours[2]} × {ours[1]}, with the'
      f' programs {", ".join(_STAGES)}; {file} is of {theirs[0]} on'
      f' {theirs[2]} × {theirs[1]}, with {", ".join(programs)}'
    )
  return compiled


def tokens_read(config: Config) -> int:
  """Tokens of a sequence that are read, at most."""
  rollout = config.rollout
  return rollout.max_prompt_length + rollout.max_response_length - 1


def _cache(config: Config, model: ModelConfig) -> int:
  per_token = 2 * model.num_layers * model.num_kv_heads * model.head_dim
  bits = jax.numpy.dtype(model.dtype).itemsize
  return config.sequences_per_iteration * tokens_read(config) * per_token * bits


def _size(tree: PyTree) -> int:
  leaves: list[Any] = jax.tree.leaves(tree)
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
