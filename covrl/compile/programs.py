# SPDX-License-Identifier: Apache-2.0
"""Ahead-of-time compilation of a recipe's programs for TPUs and GPUs.

Compiles the same programs as a run, from the shapes of their arguments: no
weights are read, nothing is executed, and no TPU or GPU is needed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from covrl.compile import model_cost, sampler
from covrl.compile.compiling import (
  Workload,
  bytes_on_chip,
  compile_program,
  describe,
  unread_state_bytes,
)
from covrl.compile.network import Interconnect
from covrl.compile.report import Program, Report
from covrl.config import Recipe, flatten
from covrl.models import Policy
from covrl.parallel import sharding, topologies
from covrl.parallel.topologies import AnyTopology
from covrl.pretrained.families.known_models import known_model_directory
from covrl.tasks.task import make_task
from covrl.train.algorithm import Algorithm
from covrl.train.collect.collector import row_width
from covrl.train.compiled import CompiledPrograms, without_frozen_base
from covrl.train.rollout_batch import abstract_batch
from covrl.train.setup.build import make_engine, make_group_engine
from covrl.train.setup.initial_policy import make_policy, make_policy_of_size
from covrl.train.state_sharding import check_mesh, rollout_mesh
from covrl.types import TokenBatch

PROGRAM_NAMES = ('train_step', 'score', 'prefill', 'decode')
"""Programs of every recipe; each further network adds `NAME_step` and `NAME_score`."""


def compile_recipe(
  recipe: Recipe,
  topology: AnyTopology,
  *,
  num_slices: int = 1,
  names: Sequence[str] | None = None,
  devices: Sequence[Any] | None = None,
  on_program: Callable[[str, int, int], None] = lambda *_: None,
) -> Report:
  """Compiles a recipe's programs and estimates their cost.

  Args:
    recipe: a recipe with overrides applied.
    topology: a TPU slice, or the hosts of GPUs.
    num_slices: number of slices.
    names: programs to compile; all by default.
    devices: devices to compile for, as many as the topology has, in place of
      its own; tests compare programs for CPU devices with counts by hand.
    on_program: called before each compilation with the names of its programs,
      its number, from 1, and the number of compilations.

  Raises:
    ValueError: if the compiler is missing, the recipe's batches or model cannot
      be sharded over the chips, or a program has matrix products of a type that
      a GPU lacks.
  """
  all_names = program_names(recipe)
  for name in names or ():
    if name not in all_names:
      raise ValueError(f'programs must be among {all_names}, got {name!r}')
  if devices is None:
    devices = topologies.compile_only_devices(topology, num_slices)
  config = recipe.config
  mesh = sharding.make_mesh(dataclasses.asdict(config.mesh), devices)
  policy, special_tokens = _policy_and_tokens(recipe)
  check_mesh(config, policy.config, mesh)
  algorithm = Algorithm.from_recipe(recipe)
  engine = make_engine(
    config,
    policy,
    special_tokens,
    mesh,
    record_experts=config.train.routing_replay,
  )
  # With admission by slots, whole groups of responses are added as slots are free.
  group_engine = None
  if config.rollout.admission == 'slots':
    group_engine = make_group_engine(config, policy, special_tokens, mesh)
  work = Workload(
    recipe=recipe,
    policy=policy,
    programs=CompiledPrograms(policy, algorithm, config, mesh),
    engine=engine,
    group_engine=group_engine,
    network=Interconnect(topology, devices=list(mesh.devices.flat)),
  )
  report = Report(
    recipe=recipe.name,
    config=flatten(config),
    topology=topology,
    num_slices=num_slices,
    mesh=dict(mesh.shape),
    sampler_mesh=dict(rollout_mesh(mesh, config.rollout.tensor).shape),
    admission=config.rollout.admission,
    parameters=policy.num_params,
    programs={},
  )
  with topologies.no_compilation_cache():
    requested = set(all_names if names is None else names)
    groups = [
      group
      for group in (
        *_PROGRAM_GROUPS,
        *_network_groups(work.programs.networks.names),
      )
      if not requested.isdisjoint(group.names)
    ]
    for number, group in enumerate(groups, 1):
      on_program(' and '.join(group.names), number, len(groups))
      report.programs.update(group.compile(work))
  return report


def program_names(recipe: Recipe) -> tuple[str, ...]:
  """Returns the names of all programs of a recipe."""
  networks = _network_groups(recipe.networks(recipe.config))
  return (*PROGRAM_NAMES, *(name for group in networks for name in group.names))


class _SpecialTokens(NamedTuple):
  """End-of-sequence tokens and the padding token."""

  end_ids: Sequence[int]
  pad_id: int


def _policy_and_tokens(recipe: Recipe) -> tuple[Policy, _SpecialTokens]:
  """Returns a recipe's policy and special tokens, without any download.

  Of a known model only the size is used: the ids of its special tokens affect
  constants of a program, but not its cost.
  """
  with known_model_directory(recipe.config.pretrained) as directory:
    if directory is not None:
      config = dataclasses.replace(recipe.config, pretrained=directory)
      local_recipe = dataclasses.replace(recipe, config=config)
      return make_policy_of_size(local_recipe, 0), _SpecialTokens((0,), 0)
  task = make_task(recipe)
  tokenizer = task.tokenizer
  special_tokens = _SpecialTokens(tokenizer.end_ids, tokenizer.pad_id)
  return make_policy(recipe, task.tokenizer), special_tokens


class _ProgramGroup(NamedTuple):
  """Programs of the report that one function compiles.

  Attributes:
    names: names of the programs in the report.
    compile: compiles them for a workload; returns each by its name.
  """

  names: tuple[str, ...]
  compile: Callable[[Workload], dict[str, Program]]


def _train_step(work: Workload) -> dict[str, Program]:
  """Compiles an optimiser update of the policy."""
  config = work.recipe.config
  rows, width = config.train.sequences_per_update, row_width(config)
  compiled = compile_program(
    work, work.programs.trace_update(_abstract_batch(work))
  )
  # The reference policy and further networks, such as a critic, stay in memory.
  state = without_frozen_base(work.programs.abstract_state())
  unread_bytes = bytes_on_chip((state.frozen, state.networks))
  model_flops = model_cost.update_flops(work.policy.config, rows, width)
  calls = config.updates_per_iteration
  return {
    'train_step': describe(
      work, compiled, model_flops, unread_bytes, calls=calls
    )
  }


def _score(work: Workload) -> dict[str, Program]:
  """Compiles a forward pass that scores an iteration's tokens."""
  config = work.recipe.config
  rows, width = config.sequences_per_iteration, row_width(config)
  compiled = compile_program(
    work, work.programs.trace_score(_abstract_batch(work))
  )
  model_flops = model_cost.scoring_flops(work.policy.config, rows, width)
  return {
    'score': describe(
      work,
      compiled,
      model_flops,
      unread_state_bytes(work),
      calls=config.scoring_passes,
    ),
  }


_PROGRAM_GROUPS = (
  _ProgramGroup(('train_step',), _train_step),
  _ProgramGroup(('score',), _score),
  _ProgramGroup(('prefill',), sampler.compile_prefill),
  _ProgramGroup(('decode',), sampler.compile_decoding),
)


def _network_groups(names: Iterable[str]) -> list[_ProgramGroup]:
  """Returns the groups of programs of networks beside the policy."""
  return [
    _ProgramGroup(
      (f'{name}_step', f'{name}_score'),
      functools.partial(_network_programs, name=name),
    )
    for name in names
  ]


def _network_programs(work: Workload, name: str) -> dict[str, Program]:
  """Compiles the update and the scoring of a network beside the policy."""
  config, networks = work.recipe.config, work.programs.networks
  rows, width = config.train.sequences_per_update, row_width(config)
  model, batch = networks.models[name].config, _abstract_batch(work)
  state = work.programs.abstract_state()
  network_state = state.networks[name]
  # State that the programs do not read stays in memory meanwhile.
  other_bytes = bytes_on_chip(state) - bytes_on_chip(network_state)
  return {
    f'{name}_step': describe(
      work,
      compile_program(work, networks.trace_update(name, batch, rows)),
      model_cost.update_flops(model, rows, width),
      other_bytes,
      calls=config.updates_per_iteration,
    ),
    f'{name}_score': describe(
      work,
      compile_program(work, networks.trace_score(name, batch)),
      model_cost.scoring_flops(model, config.sequences_per_iteration, width),
      other_bytes + bytes_on_chip(network_state.opt_state),
      calls=1,
    ),
  }


def _abstract_batch(work: Workload) -> TokenBatch:
  """Returns the shapes of an iteration's token batch."""
  config = work.recipe.config
  return abstract_batch(
    config.sequences_per_iteration,
    row_width(config),
    reference=config.train.keep_reference,
    target_names=work.programs.networks.target_names,
    has_filtered_logprobs=work.programs.has_filtered_logprobs,
    experts=work.engine.experts,
  )
