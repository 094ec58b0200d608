# SPDX-License-Identifier: Apache-2.0
"""Memory and time estimates of a run, from shapes or from compiled programs.

Shapes give, within seconds, the memory of the training state and the time at an
assumed share of the chips' peak. `covrl compile` takes minutes and includes
activations and collectives; its `--json` output is read here.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath
from jaxtyping import PyTree

from covrl.compile.model_cost import (
  cache_bytes,
  decode_flops,
  prefill_flops,
  scoring_flops,
  update_flops,
)
from covrl.config import Config, ConfigError, Recipe, flatten
from covrl.models import ExpertRecordSpec, ModelConfig, Policy
from covrl.parallel import sharding
from covrl.parallel.topologies import AnyTopology
from covrl.train.algorithm import Algorithm
from covrl.train.compiled import CompiledPrograms
from covrl.train.networks.init import network_model
from covrl.train.rollout_batch import row_width

# Assumed shares of a chip's peak that good programs reach.
FLOPS_SHARE = 0.4
BANDWIDTH_SHARE = 0.6
# Stages of an iteration by compiled program.
_STAGES = {
  'prefill': 'sampling',
  'decode': 'sampling',
  'score': 'scoring',
  'train_step': 'training',
}
# Fields that determine the compiled programs, and those among them that do not
# change their size or cost.
_PROGRAM_FIELDS = (
  'pretrained',
  'mesh.',
  'rollout.',
  'train.',
  'lora.',
  'critic.initial',
  'prime.initial',
  'entropy.selection_source',
)
_FIELDS_WITHOUT_COST = (
  'rollout.min_accuracy',
  'rollout.max_accuracy',
  'rollout.temperature',
  'train.balance',
  'train.clip_high',
  'train.clip_low',
  'train.iterations',
  'train.learning_rate',
  'train.max_gradient_norm',
  'train.max_skipped_updates',
  'train.schedule_iterations',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateMemory:
  """Memory of a run without activations, in bytes over all devices.

  Attributes:
    params: trained parameters.
    frozen: parameters that are not trained, such as the reference policy's.
    optimizer: state of the parameter chain.
    networks: parameters and optimiser state of networks beside the policy.
    gradients: float32 gradients of the parameters that an update trains, of the
      network that trains most.
    cache: KV cache of the prompts and, at full length, of the responses that
      are decoded together.
    experts: ids of the experts that an iteration's tokens were routed to,
      recorded by the sampler and replayed by the trainer; 0 without routing
      replay.
  """

  params: int
  frozen: int
  optimizer: int
  networks: int
  gradients: int
  cache: int
  experts: int

  @property
  def training(self) -> int:
    """Bytes during an update."""
    return self._state + self.gradients

  @property
  def sampling(self) -> int:
    """Bytes during decoding."""
    return self._state + self.cache

  @property
  def _state(self) -> int:
    """Bytes of everything that is in memory all the time."""
    return (
      self.params + self.frozen + self.optimizer + self.networks + self.experts
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class IterationTime:
  """Estimated seconds of an iteration at full response length.

  Attributes:
    sampling: prefill, and decoding, bound by reading weights and KV cache or by
      FLOPs.
    scoring: a forward pass over all tokens per scoring policy.
    training: all optimiser updates.
  """

  sampling: float
  scoring: float
  training: float

  @property
  def iteration(self) -> float:
    """Seconds of all stages."""
    return self.sampling + self.scoring + self.training


def state_memory(recipe: Recipe, policy: Policy) -> StateMemory:
  """Returns the memory of a recipe's training state, from shapes."""
  config = recipe.config
  algorithm = Algorithm.from_recipe(recipe)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  state = CompiledPrograms(policy, algorithm, config, mesh).abstract_state()
  return StateMemory(
    params=_bytes(state.trainable),
    frozen=_bytes(state.frozen),
    optimizer=_bytes(state.opt_state),
    networks=_bytes(state.networks),
    # Frozen parameters, such as those under adapters, have none.
    gradients=4
    * max(
      _count(state.trainable),
      *(model.num_params for model in network_models(recipe, policy)),
      0,
    ),
    cache=_cache_bytes(config, policy.config),
    experts=_expert_record_bytes(config, policy.config),
  )


def network_models(recipe: Recipe, policy: Policy) -> list[Policy]:
  """Returns the models of a recipe's networks beside the policy."""
  networks = recipe.networks(recipe.config)
  return [
    network_model(name, network, policy) for name, network in networks.items()
  ]


def iteration_time(
  config: Config,
  policy: Policy,
  memory: StateMemory,
  topology: AnyTopology,
  num_slices: int,
  networks: Sequence[Policy] = (),
) -> IterationTime:
  """Estimates the seconds of an iteration from a chip's peak rates.

  Scoring and training take the model's FLOPs (`covrl.compile.model_cost`); each
  decoding step reads the weights once and, on average, half of the KV cache,
  or takes its FLOPs if these take longer; prompts are processed before. With fewer slots than responses, slots hold several responses in turn.

  Args:
    config: the run's configuration.
    policy: the policy.
    memory: see `state_memory`.
    topology: the chips.
    num_slices: number of slices.
    networks: models of networks beside the policy, each of which scores an
      iteration's tokens once and is trained on them; see `network_models`.
  """
  chips = topology.chips * num_slices
  flops_rate = topology.chip.flops * chips * FLOPS_SHARE
  bandwidth = topology.chip.bandwidth * chips * BANDWIDTH_SHARE
  sequences, width = config.sequences_per_iteration, max_input_tokens(config)
  scoring = scoring_flops(policy.config, sequences, width)
  # Under adapters the weights are frozen, and are read all the same.
  weight_bytes = _bytes(policy.abstract_params())
  step_seconds = (weight_bytes + memory.cache / 2) / bandwidth
  rollout, slots = config.rollout, _num_slots(config)
  step_seconds = max(
    step_seconds, decode_flops(policy.config, slots, width // 2) / flops_rate
  )
  prefill = prefill_flops(
    policy.config, _num_groups(config), rollout.max_prompt_length
  )
  turns = -(-_num_responses(config) // slots)
  num_steps = turns * rollout.max_response_length
  return IterationTime(
    sampling=rollout.max_draws
    * (prefill / flops_rate + num_steps * step_seconds),
    scoring=(
      config.scoring_passes * scoring
      + sum(scoring_flops(model.config, sequences, width) for model in networks)
    )
    / flops_rate,
    training=sum(
      update_flops(model.config, sequences, width)
      for model in (policy, *networks)
    )
    / flops_rate,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledEstimate:
  """Memory and time of a recipe's compiled programs.

  Attributes:
    parameters: number of parameters of the compiled policy.
    fits: whether all programs fit into a chip's memory.
    fullest: name of the program that needs the most memory.
    peak: bytes per chip that this program needs.
    limit: bytes per chip available to a program.
    seconds: lower bound for an iteration: every program at its roofline.
  """

  parameters: int
  fits: bool
  fullest: str
  peak: int
  limit: int
  seconds: IterationTime


def read_compiled(
  file: epath.Path, recipe: Recipe, topology: AnyTopology, num_slices: int
) -> CompiledEstimate:
  """Reads the output of `covrl compile --json`.

  Args:
    file: the output.
    recipe: the recipe that it must describe.
    topology: the TPU slice that it must be compiled for.
    num_slices: the number of slices that it must be compiled for.

  Raises:
    ConfigError: if the file is not such an output, or describes another recipe,
      topology or sizes.
  """
  stages = dict(_STAGES)
  for name in recipe.networks(recipe.config):
    stages |= {f'{name}_step': 'training', f'{name}_score': 'scoring'}
  try:
    output = json.loads(file.read_text(encoding='utf-8'))
    programs: dict[str, dict[str, Any]] = output['programs']
    described = output['recipe'], output['topology'], output['num_slices']
    fields = dict(output['config'])
    missing = [name for name in stages if name not in programs]
    fullest = max(programs, key=lambda name: programs[name]['hbm_bytes'])
    seconds = dict.fromkeys(stages.values(), 0.0)
    for name in stages.keys() & programs.keys():
      program = programs[name]
      # Unknown for a program that does not fit.
      program_seconds = program['roofline_seconds']
      program_seconds = (
        math.nan
        if program_seconds is None
        else program_seconds * program['calls']
      )
      seconds[stages[name]] += program_seconds
    compiled = CompiledEstimate(
      parameters=int(output['parameters']),
      fits=bool(output['fits']),
      fullest=fullest,
      peak=int(programs[fullest]['hbm_bytes']),
      limit=int(programs[fullest]['hbm_limit_bytes']),
      seconds=IterationTime(**seconds),
    )
  except (
    *(OSError, ValueError, KeyError, TypeError, AttributeError),
    RecursionError,
  ):
    raise ConfigError(
      f'--compiled must be the output of `covrl compile --json`, got {file}'
    ) from None
  required = recipe.name, topology.name, num_slices
  if described != required or missing:
    raise ConfigError(
      f'--compiled must describe {required[0]} on {required[2]} × {required[1]},'
      f' with the programs {", ".join(stages)}, got {file}, which describes'
      f' {described[0]} on {described[2]} × {described[1]}, with'
      f' {", ".join(programs)}'
    )
  for name, value in flatten(recipe.config).items():
    if (
      name.startswith(_PROGRAM_FIELDS)
      and name not in _FIELDS_WITHOUT_COST
      and fields.get(name, value) != value
    ):
      raise ConfigError(
        f'--compiled must be of a recipe with {name} = {value}, got {file}, of one'
        f' with {fields[name]}'
      )
  return compiled


def max_input_tokens(config: Config) -> int:
  """Returns the maximal number of tokens of a sequence that are input."""
  rollout = config.rollout
  return rollout.max_prompt_length + rollout.max_response_length - 1


def _cache_bytes(config: Config, model: ModelConfig) -> int:
  """Returns the bytes of keys and values while an iteration is sampled.

  The sampler stores a prompt once for all responses to it, and of the responses
  those that slots hold.
  """
  rollout = config.rollout
  int8 = rollout.cache_dtype == 'int8'
  return cache_bytes(
    model, _num_groups(config), rollout.max_prompt_length, 0, int8=int8
  ) + cache_bytes(
    model, _num_slots(config), 0, rollout.max_response_length - 1, int8=int8
  )


def _num_responses(config: Config) -> int:
  """Returns the number of responses that a draw samples."""
  return _num_groups(config) * config.rollout.responses_per_prompt


def _num_groups(config: Config) -> int:
  """Returns the number of prompts that a draw samples responses to."""
  return config.rollout.prompts_per_iteration + config.rollout.carried_groups


def _num_slots(config: Config) -> int:
  """Returns the number of responses that are decoded together."""
  responses = _num_responses(config)
  return min(config.rollout.slots or responses, responses)


def _expert_record_bytes(config: Config, model: ModelConfig) -> int:
  """Returns the bytes of the recorded expert ids of an iteration's tokens."""
  if not config.train.routing_replay:
    return 0
  tokens = config.sequences_per_iteration * row_width(config)
  return tokens * ExpertRecordSpec.of(model).bytes_per_token


def _count(tree: PyTree) -> int:
  """Returns the number of elements of a tree of arrays or shapes."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _bytes(tree: PyTree) -> int:
  """Returns the bytes of a tree of arrays or shapes."""
  leaves: list[Any] = jax.tree.leaves(tree)
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
