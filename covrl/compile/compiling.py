# SPDX-License-Identifier: Apache-2.0
"""Compilation of one program, and the description of its memory and cost."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from typing import NamedTuple

import jax
from jaxtyping import PyTree

from covrl.compile.cost import ALL_SCOPES, Scopes, cost_of
from covrl.compile.hlo import Instruction, Module, parse
from covrl.compile.network import Interconnect
from covrl.compile.report import Memory, Program
from covrl.config import Recipe
from covrl.data.packing import prompt_width
from covrl.models import Policy
from covrl.parallel.gpus import Gpu
from covrl.rollout import GroupEngine, SamplingEngine
from covrl.rollout.programs import TracedPrograms
from covrl.train.compiled import CompiledPrograms, without_frozen_base


@dataclasses.dataclass(frozen=True)
class Workload:
  """Everything that the programs are compiled from.

  Attributes:
    recipe: the recipe.
    policy: the policy.
    programs: the trainer's programs.
    engine: the sampler of whole draws.
    group_engine: the sampler to which prompts are added as slots are free;
      `None` if the run samples whole draws.
    network: the chips and their links.
  """

  recipe: Recipe
  policy: Policy
  programs: CompiledPrograms
  engine: SamplingEngine
  group_engine: GroupEngine | None
  network: Interconnect

  @functools.cached_property
  def sampler(self) -> TracedPrograms:
    """The programs of the run's sampler, traced."""
    rollout = self.recipe.config.rollout
    params = self.programs.params(self.programs.abstract_state())
    if self.group_engine is not None:
      return self.group_engine.trace(params)
    return self.engine.trace(
      params,
      rollout.prompts_per_iteration,
      prompt_width(rollout.max_prompt_length),
      group_size=rollout.responses_per_prompt,
    )


class Compiled(NamedTuple):
  """The result of a compilation.

  Attributes:
    module: the compiled program; `None` if it does not fit.
    memory: bytes by kind; `None` if it does not fit.
    needed_bytes: peak memory in bytes, known in both cases.
  """

  module: Module | None
  memory: Memory | None
  needed_bytes: int


def compile_program(work: Workload, traced: jax.stages.Traced) -> Compiled:
  """Compiles a program, or finds out how much memory it would need."""
  topology = work.network.topology
  lowered = traced.lower()
  if isinstance(topology.chip, Gpu) and topology.chip.fp8 is None:
    check_products(lowered.as_text(), topology.chip)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    needed_bytes = _required_bytes(str(error))
    if needed_bytes is None:
      raise
    return Compiled(None, None, needed_bytes)
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
  return Compiled(parse(text, topology.platform), memory, memory.peak)


def check_products(lowered: str, gpu: Gpu) -> None:
  """Refuses matrix products in 8-bit floats on a GPU without them.

  XLA would convert the factors, which is slower than no 8-bit floats at all.

  Args:
    lowered: the program as StableHLO.
    gpu: the GPU to compile for.

  Raises:
    ValueError: if there is such a product.
  """
  match = re.search(r'stablehlo\.dot_general .*x(f8E\w+)>', lowered)
  if match is not None:
    raise ValueError(
      f'matrix products must be of a type that the GPU has; {gpu.name} has none '
      f'of 8-bit floats, got {match[1]}'
    )


def _required_bytes(error: str) -> int | None:
  """Returns the bytes per chip that an out-of-memory error reports, if any.

  >>> _required_bytes('Ran out of memory in memory space hbm. Used 2.50G of 1.00G hbm.')
  2684354560
  >>> _required_bytes('total memory required for HLO temporaries (3.00G) exceeds')
  3221225472
  >>> _required_bytes('no such operation')
  """
  match = re.search(
    r'(?:Used |temporaries \()([\d.]+)([KMGT]?)(?: of [\d.]+[KMGT]? hbm|\))',
    error,
  )
  if match is None:
    return None
  return int(float(match[1]) * 1024 ** ' KMGT'.index(match[2] or ' '))


def describe(
  work: Workload,
  compiled: Compiled,
  model_flops: float,
  unread_state: int,
  *,
  calls: int,
  loop: Instruction | None = None,
  scopes: Scopes = ALL_SCOPES,
) -> Program:
  """Describes the memory and cost of a program, or of one trip of a loop in it.

  Args:
    work: the recipe, models and chips that it was compiled for.
    compiled: the program.
    model_flops: operations that the model requires, on all chips.
    unread_state: bytes per chip of state that it does not read.
    calls: calls per iteration, at most.
    loop: the loop, if only one trip of it is described.
    scopes: parts whose cost is left out or reduced.
  """
  chips = len(work.network.devices)
  module, memory, cost = compiled.module, compiled.memory, None
  if module is not None and memory is not None:
    memory = memory._replace(unread_state=unread_state)
    body = module.computations[loop.attribute('body') or ''] if loop else None
    cost = cost_of(module, body, scopes=scopes)
  return Program(
    memory=memory,
    needed_bytes=compiled.needed_bytes + unread_state,
    cost=cost,
    model_flops=model_flops / chips,
    network=work.network,
    calls=calls,
  )


def unread_state_bytes(work: Workload) -> int:
  """Returns the bytes per chip of training state other than parameters."""
  state = without_frozen_base(work.programs.abstract_state())
  return bytes_on_chip((state.frozen, state.opt_state, state.networks))


def bytes_on_chip(tree: PyTree) -> int:
  """Returns the bytes of abstract arrays in one chip's memory."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
    if leaf.sharding.memory_kind != 'pinned_host'
  )
