# SPDX-License-Identifier: Apache-2.0
"""A recipe's programs, compiled for TPUs that need not be there.

The programs are those that a run compiles, from the shapes of their arguments:
no weights are read, and nothing is run.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from covrl.compile import flops
from covrl.compile.cost import cost_of
from covrl.compile.hlo import Instruction, Module, parse
from covrl.compile.network import Network
from covrl.compile.report import Memory, Program, Report
from covrl.config import Recipe
from covrl.data.packing import prompt_width
from covrl.models import Policy
from covrl.parallel import sharding, topologies
from covrl.parallel.topologies import Topology
from covrl.pretrained.known_models import shape_of
from covrl.rollout import SamplingEngine
from covrl.train.compiled import Algorithm, Programs, without_base
from covrl.train.init import described_policy, policy_of
from covrl.train.rollout_batch import abstract_batch
from covrl.train.rollout_collector import row_width
from covrl.train.state_sharding import check_mesh, rollout_mesh
from covrl.types import TokenBatch

NAMES = ('train_step', 'score', 'prefill', 'decode')


def compile_recipe(
  recipe: Recipe,
  topology: Topology,
  *,
  num_slices: int = 1,
  names: tuple[str, ...] = NAMES,
  note: Callable[[str], None] = lambda _: None,
) -> Report:
  """Compiles a recipe's programs and counts what they take.

  Args:
    recipe: a config file with overrides applied.
    topology: a slice of TPUs.
    num_slices: how many of them.
    names: which programs.
    note: is told what is being compiled.

  Raises:
    ValueError: if libtpu is missing, or the recipe cannot lie on so many chips.
  """
  for name in names:
    if name not in NAMES:
      raise ValueError(f'programs must be among {NAMES}, got {name!r}')
  devices = topologies.devices(topology, num_slices)
  config = recipe.config
  mesh = sharding.make_mesh(dataclasses.asdict(config.mesh), devices)
  policy, alphabet = _policy(recipe)
  check_mesh(config, policy.config, mesh)
  algorithm = Algorithm.of(recipe)
  sampler = rollout_mesh(mesh, config.rollout.tensor)
  engine = SamplingEngine(
    policy,
    sampler,
    end_ids=alphabet.end_ids,
    pad_id=alphabet.pad_id,
    max_response_length=config.rollout.max_response_length,
  )
  work = _Workload(
    recipe=recipe,
    policy=policy,
    programs=Programs(policy, algorithm, config, mesh),
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
  with topologies.uncached():
    for group in _GROUPS:
      if any(name in names for name in group.names):
        note(' and '.join(group.names))
        report.programs.update(group.run(work))
  return report


class _Alphabet(NamedTuple):
  """Tokens that end a response, and the one that fills up its row."""

  end_ids: Sequence[int]
  pad_id: int


def _policy(recipe: Recipe) -> tuple[Policy, _Alphabet]:
  """What a recipe trains; of published models nothing is read or fetched.

  Which tokens end a response changes a program's constants, and nothing that it
  takes.
  """
  with shape_of(recipe.config.pretrained) as directory:
    if directory is not None:
      config = dataclasses.replace(recipe.config, pretrained=directory)
      shaped = dataclasses.replace(recipe, config=config)
      return described_policy(shaped, 0), _Alphabet((0,), 0)
  task = recipe.module.make_task(recipe.config)
  tokenizer = task.tokenizer
  alphabet = _Alphabet(tokenizer.end_ids, tokenizer.pad_id)
  return policy_of(recipe, task), alphabet


class _Workload(NamedTuple):
  """What programs are made from."""

  recipe: Recipe
  policy: Policy
  programs: Programs
  engine: SamplingEngine
  network: Network


class _Group(NamedTuple):
  """Programs of the report that are one program to XLA."""

  names: tuple[str, ...]
  run: Callable[[_Workload], dict[str, Program]]


def _train_step(work: _Workload) -> dict[str, Program]:
  config = work.recipe.config
  rows, width = config.train.sequences_per_update, row_width(config)
  compiled = _compiled(work.programs.trace_update(_batch(work)))
  # The reference policy, if there is one, waits beside.
  state = without_base(work.programs.abstract_state())
  beside = _bytes_on_chip(state.frozen)
  needed = flops.of_update(work.policy.config, rows, width)
  calls = config.updates_per_iteration
  return {'train_step': _program(work, compiled, needed, beside, calls=calls)}


def _score(work: _Workload) -> dict[str, Program]:
  config = work.recipe.config
  rows, width = config.sequences_per_iteration, row_width(config)
  compiled = _compiled(work.programs.trace_score(_batch(work)))
  needed = flops.of_scoring(work.policy.config, rows, width)
  scorers = 2 if config.train.keep_reference else 1
  calls = config.rollout.max_draws * scorers
  return {
    'score': _program(work, compiled, needed, _idle(work), calls=calls),
  }


def _sample(work: _Workload) -> dict[str, Program]:
  """Prefill is what the sampler does outside of its loop, decode one trip."""
  rollout = work.recipe.config.rollout
  model, rows = work.policy.config, work.recipe.config.sequences_per_iteration
  width = prompt_width(rollout.max_prompt_length)
  slots = width + rollout.max_response_length - 1
  compiled = _compiled(
    work.engine.trace(
      work.programs.params(work.programs.abstract_state()),
      rollout.prompts_per_iteration,
      width,
      group_size=rollout.responses_per_prompt,
    )
  )
  loop = _token_loop(compiled.module) if compiled.module else None
  idle = _idle(work)
  needed = flops.of_prefill(model, rollout.prompts_per_iteration, width)
  prefill = _program(
    work, compiled, needed, idle, calls=rollout.max_draws, without=loop
  )
  decode = _program(
    work,
    compiled,
    flops.of_token(model, rows, slots),
    idle,
    calls=rollout.max_draws * (rollout.max_response_length - 1),
    only=loop,
  )
  ideal = _weights(work) + _cache(work, rows, slots)
  return {
    'prefill': prefill,
    'decode': dataclasses.replace(decode, ideal_bytes=ideal),
  }


_GROUPS = (
  _Group(('train_step',), _train_step),
  _Group(('score',), _score),
  _Group(('prefill', 'decode'), _sample),
)


class _Compiled(NamedTuple):
  """What the compiler made.

  Attributes:
    module: the program; `None` if it does not fit.
    memory: bytes by kind, likewise.
    needed: bytes at the peak.
  """

  module: Module | None
  memory: Memory | None
  needed: int


def _compiled(traced: jax.stages.Traced) -> _Compiled:
  """Compiles a program."""
  try:
    compiled = traced.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    needed = _needed(str(error))
    if needed is None:
      raise
    return _Compiled(None, None, needed)
  stats = compiled.memory_analysis()
  text = compiled.as_text()
  if stats is None or text is None:
    raise RuntimeError('the compiler says nothing of the program it made')
  memory = Memory(
    arguments=stats.argument_size_in_bytes,
    outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
    temporaries=stats.temp_size_in_bytes,
    code=stats.generated_code_size_in_bytes,
    elsewhere=0,
  )
  return _Compiled(parse(text), memory, memory.peak)


def _needed(error: str) -> int | None:
  """Bytes that a program needs of a chip, from the compiler's refusal.

  >>> _needed('Ran out of memory in memory space hbm. Used 2.50G of 1.00G hbm.')
  2684354560
  >>> _needed('total memory required for HLO temporaries (3.00G) exceeds')
  3221225472
  >>> _needed('no such operation')
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
  elsewhere: int,
  *,
  calls: int,
  without: Instruction | None = None,
  only: Instruction | None = None,
) -> Program:
  """A program, or what it does without a loop, or in one trip of it alone."""
  chips = len(work.network.devices)
  module, memory, cost = compiled.module, compiled.memory, None
  if module is not None and memory is not None:
    memory = memory._replace(elsewhere=elsewhere)
    skip = frozenset([without.name] if without else [])
    body = module.computations[only.attribute('body') or ''] if only else None
    cost = cost_of(module, body, skip=skip)
  return Program(
    memory=memory,
    needed=compiled.needed + elsewhere,
    cost=cost,
    model_flops=model_flops / chips,
    network=work.network,
    calls=calls,
  )


def _token_loop(module: Module) -> Instruction:
  """The sampler's loop over tokens: the one that has loops of layers in it."""
  loops = [
    each
    for each in module.entry.instructions.values()
    if each.opcode == 'while' and module.trips(each, module.entry) is None
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
  )


def _idle(work: _Workload) -> int:
  """Bytes of the training state beside the parameters, per chip."""
  state = without_base(work.programs.abstract_state())
  return _bytes_on_chip((state.frozen, state.opt_state))


def _bytes_on_chip(tree: PyTree) -> int:
  """Bytes of a tree of abstract arrays that are in one chip's memory."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
    if leaf.sharding.memory_kind != 'pinned_host'
  )


def _weights(work: _Workload) -> float:
  """Bytes of a chip's weights that a token needs: all that are multiplied."""
  policy, mesh = work.policy, work.engine.mesh
  assert mesh is not None

  def on_chip(leaf: Any, axes: tuple[str, ...]) -> int:
    place = sharding.fit(mesh, axes, leaf.shape, sharding.ROLLOUT_RULES)
    return math.prod(place.shard_shape(leaf.shape))

  params = policy.abstract_params()
  sizes = jax.tree.map(on_chip, params, policy.axes)
  if not policy.config.tied_embeddings:
    sizes['embedding'] = 0
  total = sum(jax.tree.leaves(sizes))
  return float(total * jnp.dtype(policy.config.dtype).itemsize)


def _cache(work: _Workload, rows: int, slots: int) -> float:
  """Bytes of a chip's keys and values, every slot in use."""
  config, mesh = work.policy.config, work.engine.mesh
  assert mesh is not None
  shape = (
    config.num_layers,
    rows,
    math.lcm(config.num_kv_heads, mesh.shape['tensor']),
    slots,
    config.head_dim,
  )
  axes = ('layers', 'batch', 'attention_heads', 'attended', 'head_dim')
  place = sharding.fit(mesh, axes, shape, sharding.ROLLOUT_RULES)
  size = jnp.dtype(config.dtype).itemsize
  return 2.0 * math.prod(place.shard_shape(shape)) * size
