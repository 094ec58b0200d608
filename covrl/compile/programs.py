# SPDX-License-Identifier: Apache-2.0
"""Ahead-of-time compilation of a recipe's programs for TPUs and GPUs.

Compiles the same programs as a run, from the shapes of their arguments: no
weights are read, nothing is executed, and no TPU or GPU is needed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from covrl.compile import model_cost
from covrl.compile.cost import Scopes, cost_of
from covrl.compile.hlo import Instruction, Module, parse
from covrl.compile.network import Network
from covrl.compile.report import Memory, Program, Report
from covrl.config import Recipe
from covrl.data.packing import prompt_width
from covrl.models import Policy
from covrl.parallel import sharding, topologies
from covrl.parallel.gpus import Gpu
from covrl.parallel.topologies import AnyTopology
from covrl.pretrained.known_models import known_model_directory
from covrl.rollout import SamplingEngine
from covrl.rollout.sampling import TRUNCATION
from covrl.train.algorithm import Algorithm
from covrl.train.compiled import CompiledPrograms, without_base
from covrl.train.init import make_policy, make_policy_of_size
from covrl.train.rollout_batch import abstract_batch
from covrl.train.rollout_collector import row_width
from covrl.train.state_sharding import check_mesh, rollout_mesh
from covrl.types import TokenBatch

NAMES = ('train_step', 'score', 'prefill', 'decode')
"""Programs of every recipe; each second network adds `NAME_step` and `NAME_score`."""


def compile_recipe(
  recipe: Recipe,
  topology: AnyTopology,
  *,
  num_slices: int = 1,
  names: Sequence[str] | None = None,
  on_program: Callable[[str, int, int], None] = lambda *_: None,
) -> Report:
  """Compiles a recipe's programs and estimates their cost.

  Args:
    recipe: a recipe with overrides applied.
    topology: a TPU slice, or GPUs of hosts.
    num_slices: number of slices.
    names: programs to compile; all by default.
    on_program: called before each compilation with the names of its programs,
      its number, from 1, and the number of compilations.

  Raises:
    ValueError: if the compiler is missing, the recipe's batches or model cannot
      be sharded over the chips, or a program has matrix products of a type that
      a GPU lacks.
  """
  known = program_names(recipe)
  for name in names or ():
    if name not in known:
      raise ValueError(f'programs must be among {known}, got {name!r}')
  devices = topologies.compile_only_devices(topology, num_slices)
  config = recipe.config
  mesh = sharding.make_mesh(dataclasses.asdict(config.mesh), devices)
  policy, special_tokens = _policy(recipe)
  check_mesh(config, policy.config, mesh)
  algorithm = Algorithm.from_recipe(recipe)
  sampler = rollout_mesh(mesh, config.rollout.tensor)
  engine = SamplingEngine(
    policy,
    sampler,
    end_ids=special_tokens.end_ids,
    pad_id=special_tokens.pad_id,
    max_response_length=config.rollout.max_response_length,
    slots=config.rollout.slots,
    segment=config.rollout.segment,
  )
  work = _Workload(
    recipe=recipe,
    policy=policy,
    programs=CompiledPrograms(policy, algorithm, config, mesh),
    engine=engine,
    network=Network(topology, devices=list(mesh.devices.flat)),
  )
  report = Report(
    recipe=recipe.name,
    topology=topology,
    num_slices=num_slices,
    mesh=dict(mesh.shape),
    sampler_mesh=dict(sampler.shape),
    parameters=policy.num_params,
    programs={},
  )
  with topologies.no_compilation_cache():
    wanted = set(known if names is None else names)
    groups = [
      group
      for group in (*_GROUPS, *_network_groups(work.programs.networks.names))
      if not wanted.isdisjoint(group.names)
    ]
    for number, group in enumerate(groups, 1):
      on_program(' and '.join(group.names), number, len(groups))
      report.programs.update(group.run(work))
  return report


def program_names(recipe: Recipe) -> tuple[str, ...]:
  """Returns the names of all programs of a recipe."""
  networks = _network_groups(recipe.networks(recipe.config))
  return (*NAMES, *(name for group in networks for name in group.names))


class _SpecialTokens(NamedTuple):
  """End-of-sequence tokens and the padding token."""

  end_ids: Sequence[int]
  pad_id: int


def _policy(recipe: Recipe) -> tuple[Policy, _SpecialTokens]:
  """Returns a recipe's policy; nothing of a known model is downloaded.

  Which tokens end a response affects constants of a program, but not its cost.
  """
  with known_model_directory(recipe.config.pretrained) as directory:
    if directory is not None:
      config = dataclasses.replace(recipe.config, pretrained=directory)
      shaped = dataclasses.replace(recipe, config=config)
      return make_policy_of_size(shaped, 0), _SpecialTokens((0,), 0)
  task = recipe.task(recipe.config)
  tokenizer = task.tokenizer
  special_tokens = _SpecialTokens(tokenizer.end_ids, tokenizer.pad_id)
  return make_policy(recipe, task.tokenizer), special_tokens


class _Workload(NamedTuple):
  """Everything that the programs are compiled from."""

  recipe: Recipe
  policy: Policy
  programs: CompiledPrograms
  engine: SamplingEngine
  network: Network


class _Group(NamedTuple):
  """Programs of the report that XLA compiles as one program."""

  names: tuple[str, ...]
  run: Callable[[_Workload], dict[str, Program]]


def _train_step(work: _Workload) -> dict[str, Program]:
  config = work.recipe.config
  rows, width = config.train.sequences_per_update, row_width(config)
  compiled = _compile(work, work.programs.trace_update(_batch(work)))
  # The reference policy and second networks stay in memory meanwhile.
  state = without_base(work.programs.abstract_state())
  unread = _bytes_on_chip((state.frozen, state.networks))
  needed = model_cost.update_flops(work.policy.config, rows, width)
  calls = config.updates_per_iteration
  return {'train_step': _program(work, compiled, needed, unread, calls=calls)}


def _score(work: _Workload) -> dict[str, Program]:
  config = work.recipe.config
  rows, width = config.sequences_per_iteration, row_width(config)
  compiled = _compile(work, work.programs.trace_score(_batch(work)))
  needed = model_cost.scoring_flops(work.policy.config, rows, width)
  return {
    'score': _program(
      work,
      compiled,
      needed,
      _unread_state_bytes(work),
      calls=config.scoring_passes,
    ),
  }


def _sample(work: _Workload) -> dict[str, Program]:
  """The sampler's programs: `decode` is one token of every slot."""
  rollout = work.recipe.config.rollout
  model, rows = work.policy.config, work.recipe.config.sequences_per_iteration
  width = prompt_width(rollout.max_prompt_length)
  slots = width + rollout.max_response_length - 1
  traced = work.engine.trace(
    work.programs.params(work.programs.abstract_state()),
    rollout.prompts_per_iteration,
    width,
    group_size=rollout.responses_per_prompt,
  )
  started, segment = (
    _compile(work, each) for each in (traced.start, traced.run)
  )
  loop = _token_loop(segment.module) if segment.module else None
  unread = _unread_state_bytes(work)
  needed = model_cost.prefill_flops(model, rollout.prompts_per_iteration, width)
  truncates = rollout.top_p < 1 or rollout.top_k > 0 or rollout.min_p > 0
  unused = frozenset() if truncates else frozenset([TRUNCATION])
  prefill = _program(
    work, started, needed, unread, calls=rollout.max_draws, unused=unused
  )
  decode = _program(
    work,
    segment,
    model_cost.decode_flops(model, rows, slots),
    unread,
    calls=rollout.max_draws * (rollout.max_response_length - 1),
    only=loop,
    unused=unused,
  )
  cache = traced.cache
  keys = (cache.keys, cache.values, cache.prompts.keys, cache.prompts.values)
  ideal = _weights(work) + _bytes_on_chip(keys)
  return {
    'prefill': prefill,
    'decode': dataclasses.replace(decode, ideal_bytes=ideal),
  }


_GROUPS = (
  _Group(('train_step',), _train_step),
  _Group(('score',), _score),
  _Group(('prefill', 'decode'), _sample),
)


def _network_groups(names: Iterable[str]) -> list[_Group]:
  """The programs of second networks."""
  return [
    _Group(
      (f'{name}_step', f'{name}_score'),
      functools.partial(_network_programs, name=name),
    )
    for name in names
  ]


def _network_programs(work: _Workload, name: str) -> dict[str, Program]:
  """The update and the scoring of a second network."""
  config, networks = work.recipe.config, work.programs.networks
  rows, width = config.train.sequences_per_update, row_width(config)
  model, batch = networks.model(name).config, _batch(work)
  state = work.programs.abstract_state()
  own = state.networks[name]
  # All that the programs do not read stays in memory meanwhile.
  others = _bytes_on_chip(state) - _bytes_on_chip(own)
  return {
    f'{name}_step': _program(
      work,
      _compile(work, networks.trace_update(name, batch, rows)),
      model_cost.update_flops(model, rows, width),
      others,
      calls=config.updates_per_iteration,
    ),
    f'{name}_score': _program(
      work,
      _compile(work, networks.trace_score(name, batch)),
      model_cost.scoring_flops(model, config.sequences_per_iteration, width),
      others + _bytes_on_chip(own.opt_state),
      calls=1,
    ),
  }


class _Compiled(NamedTuple):
  """The result of a compilation.

  Attributes:
    module: the compiled program; `None` if it does not fit.
    memory: bytes by kind; `None` if it does not fit.
    needed: peak memory in bytes, known in both cases.
  """

  module: Module | None
  memory: Memory | None
  needed: int


def _compile(work: _Workload, traced: jax.stages.Traced) -> _Compiled:
  """Compiles a program, or finds out how much memory it would need."""
  topology = work.network.topology
  lowered = traced.lower()
  if isinstance(topology.chip, Gpu) and topology.chip.fp8 is None:
    check_products(lowered.as_text(), topology.chip)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    needed = _required_bytes(str(error))
    if needed is None:
      raise
    return _Compiled(None, None, needed)
  stats = compiled.memory_analysis()
  text = compiled.as_text()
  if stats is None or text is None:
    raise RuntimeError('the compiler must report memory and HLO, got nothing')
  memory = Memory(
    arguments=stats.argument_size_in_bytes,
    outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
    temporaries=stats.temp_size_in_bytes,
    code=stats.generated_code_size_in_bytes,
    unread_state=0,
  )
  return _Compiled(parse(text, topology.platform), memory, memory.peak)


def check_products(lowered: str, gpu: Gpu) -> None:
  """Refuses matrix products in 8-bit floats on a GPU without them.

  XLA would convert the factors, which is slower than no 8-bit floats at all.

  Args:
    lowered: the program as StableHLO.
    gpu: the GPU to compile for.

  Raises:
    ValueError: if there is such a product.
  """
  found = re.search(r'stablehlo\.dot_general .*x(f8E\w+)>', lowered)
  if found is not None:
    raise ValueError(
      f'matrix products must be of a type that the GPU has; {gpu.name} has none '
      f'of 8-bit floats, got {found[1]}'
    )


def _required_bytes(error: str) -> int | None:
  """Returns the bytes per chip that an out-of-memory error reports, if any.

  >>> _required_bytes('Ran out of memory in memory space hbm. Used 2.50G of 1.00G hbm.')
  2684354560
  >>> _required_bytes('total memory required for HLO temporaries (3.00G) exceeds')
  3221225472
  >>> _required_bytes('no such operation')
  """
  found = re.search(
    r'(?:Used |temporaries \()([\d.]+)([KMGT]?)(?: of [\d.]+[KMGT]? hbm|\))',
    error,
  )
  if found is None:
    return None
  return int(float(found[1]) * 1024 ** ' KMGT'.index(found[2] or ' '))


def _program(
  work: _Workload,
  compiled: _Compiled,
  model_flops: float,
  unread_state: int,
  *,
  calls: int,
  only: Instruction | None = None,
  unused: frozenset[str] = frozenset(),
) -> Program:
  """Describes a program, or only one trip of one of its loops."""
  chips = len(work.network.devices)
  module, memory, cost = compiled.module, compiled.memory, None
  if module is not None and memory is not None:
    memory = memory._replace(unread_state=unread_state)
    body = module.computations[only.attribute('body') or ''] if only else None
    cost = cost_of(module, body, scopes=Scopes(unused))
  return Program(
    memory=memory,
    needed=compiled.needed + unread_state,
    cost=cost,
    model_flops=model_flops / chips,
    network=work.network,
    calls=calls,
  )


def _token_loop(module: Module) -> Instruction:
  """Returns the sampler's loop over tokens, which contains loops over layers."""
  loops = [
    each
    for each in module.entry.instructions.values()
    if each.opcode == 'while'
  ]
  return max(
    loops,
    key=lambda each: (
      cost_of(module, module.computations[each.attribute('body') or '']).bytes
    ),
  )


def _batch(work: _Workload) -> TokenBatch:
  config = work.recipe.config
  return abstract_batch(
    config.sequences_per_iteration,
    row_width(config),
    reference=config.train.keep_reference,
    credit=work.programs.networks.credit,
    filtered=work.programs.reads_filtered,
  )


def _unread_state_bytes(work: _Workload) -> int:
  """Returns the bytes per chip of training state other than parameters."""
  state = without_base(work.programs.abstract_state())
  return _bytes_on_chip((state.frozen, state.opt_state, state.networks))


def _bytes_on_chip(tree: PyTree) -> int:
  """Returns the bytes of abstract arrays in one chip's memory."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
    if leaf.sharding.memory_kind != 'pinned_host'
  )


def _weights(work: _Workload) -> float:
  """Returns the bytes per chip of the weights that a decoding step reads."""
  policy, mesh = work.policy, work.engine.mesh
  assert mesh is not None

  def on_chip(leaf: Any, axes: tuple[str, ...]) -> int:
    shards = sharding.fitted_sharding(
      mesh, axes, leaf.shape, sharding.ROLLOUT_RULES
    )
    return math.prod(shards.shard_shape(leaf.shape))

  params = policy.abstract_params()
  sizes = jax.tree.map(on_chip, params, policy.axes)
  if not policy.config.tied_embeddings:
    sizes['embedding'] = 0
  total = sum(jax.tree.leaves(sizes))
  return float(total * jnp.dtype(policy.config.dtype).itemsize)
