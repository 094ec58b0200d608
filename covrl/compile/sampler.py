# SPDX-License-Identifier: Apache-2.0
"""The sampler's programs: prefill, and decoding of one token of every slot."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from covrl.compile import model_cost
from covrl.compile.compiling import (
  Compiled,
  Workload,
  bytes_on_chip,
  compile_program,
  describe,
  unread_state_bytes,
)
from covrl.compile.cost import Cost, Scopes, cost_of
from covrl.compile.hlo import Instruction, Module
from covrl.compile.report import Program
from covrl.compile.sampling_time import DecodingTime, StepCost, decoding_times
from covrl.data.packing import prompt_width
from covrl.models.attention.decode import RESPONSES_SCOPE, uses_kernel
from covrl.parallel import sharding
from covrl.rollout.sampling import TRUNCATION_SCOPE


def compile_prefill(work: Workload) -> dict[str, Program]:
  """Compiles the prefill of a draw's prompts, with the first response tokens.

  If prompts are added as slots become free, a program processes a few of them,
  and the costs of all its calls in all draws are added.

  If the sampler has another mesh or type than the trainer, a program before it
  moves the parameters: its costs are added, and the memory is that of the larger
  of the two.
  """
  rollout = work.recipe.config.rollout
  width = prompt_width(rollout.max_prompt_length)
  traced, draws, calls = work.sampler, rollout.max_draws, 1
  if work.group_engine is not None:
    calls = -(-draws * rollout.prompts_per_iteration // traced.prompts)
    draws = 1
  prefill_program = describe(
    work,
    compile_program(work, traced.start),
    calls * model_cost.prefill_flops(work.policy.config, traced.prompts, width),
    _unread_bytes(work),
    calls=draws,
    scopes=_scopes(work),
  )
  placement = None
  if traced.place is not None:
    placement = describe(
      work,
      compile_program(work, traced.place),
      0.0,
      unread_state_bytes(work),
      calls=draws,
    )
  return {'prefill': _in_sequence(placement, prefill_program, calls)}


def _in_sequence(
  placement: Program | None, program: Program, calls: int
) -> Program:
  """Describes `placement`, if given, followed by `calls` calls of `program`."""
  larger = program
  if placement is not None and placement.needed_bytes > program.needed_bytes:
    larger = placement
  cost = None
  if program.cost is not None and (
    placement is None or placement.cost is not None
  ):
    cost = Cost()
    if placement is not None and placement.cost is not None:
      cost.add(placement.cost)
    cost.add(program.cost, calls)
  return dataclasses.replace(
    program, needed_bytes=larger.needed_bytes, memory=larger.memory, cost=cost
  )


def compile_decoding(work: Workload) -> dict[str, Program]:
  """Compiles the decoding of one token of every slot, with a full cache."""
  config = work.recipe.config
  rollout, model = config.rollout, work.policy.config
  width = prompt_width(rollout.max_prompt_length)
  cached_tokens = width + rollout.max_response_length - 1
  segment = compile_program(work, work.sampler.run)
  loop = _token_loop(segment.module) if segment.module else None
  rows = work.sampler.cache.length.shape[0]
  # Responses that a slot holds in turn, at most.
  turns = -(-config.sequences_per_iteration // rows)
  program = describe(
    work,
    segment,
    model_cost.decode_flops(model, rows, cached_tokens),
    _unread_bytes(work),
    calls=rollout.max_draws * turns * (rollout.max_response_length - 1),
    loop=loop,
    scopes=_scopes(work),
  )
  cache = work.sampler.cache
  cached_arrays = [leaf for leaf in jax.tree.leaves(cache) if leaf.ndim >= 4]
  program = dataclasses.replace(
    program, ideal_bytes=_weight_bytes(work) + bytes_on_chip(cached_arrays)
  )
  decoding = _decoding_estimates(work, segment, loop, program)
  return {'decode': dataclasses.replace(program, decoding=decoding)}


def _unread_bytes(work: Workload) -> int:
  """Returns the bytes of state that the sampler does not read.

  These are the training state other than parameters and, if the sampler has a
  copy of the parameters, those of the trainer.
  """
  unread = unread_state_bytes(work)
  if work.sampler.place is None:
    return unread
  params = work.programs.params(work.programs.abstract_state())
  return unread + bytes_on_chip(params)


def _scopes(work: Workload) -> Scopes:
  """Returns scopes in which truncation is unused if the run does not truncate."""
  rollout = work.recipe.config.rollout
  truncates = rollout.top_p < 1 or rollout.top_k > 0 or rollout.min_p > 0
  return Scopes(
    unused=frozenset() if truncates else frozenset([TRUNCATION_SCOPE])
  )


def _decoding_estimates(
  work: Workload, segment: Compiled, loop: Instruction | None, program: Program
) -> tuple[DecodingTime, ...]:
  """Estimates the time of an iteration's decoding; empty if it does not fit."""
  if segment.module is None or loop is None or program.cost is None:
    return ()
  body = segment.module.computations[loop.attribute('body') or '']
  scopes = _scopes(work)._replace(omitted=frozenset([RESPONSES_SCOPE]))
  cost_without_responses = cost_of(segment.module, body, scopes=scopes)
  config = work.recipe.config
  mesh = work.engine.mesh
  with sharding.use_mesh(mesh, sharding.ROLLOUT_RULES):
    reads_by_row = uses_kernel(work.policy.config)
  unit_seconds = program.seconds()
  step = StepCost(
    bytes=program.cost.bytes,
    response_bytes=program.cost.bytes - cost_without_responses.bytes,
    bandwidth=work.network.topology.chip.bandwidth,
    seconds=max(time for unit, time in unit_seconds.items() if unit != 'hbm'),
    max_response_tokens=config.rollout.max_response_length - 1,
    reads_by_row=reads_by_row,
  )
  return decoding_times(
    step, work.sampler.layout, config.sequences_per_iteration
  )


def _token_loop(module: Module) -> Instruction:
  """Returns the sampler's loop over tokens, which contains loops over layers."""
  loops = [
    loop
    for loop in module.entry.instructions.values()
    if loop.opcode == 'while'
  ]
  return max(
    loops,
    key=lambda loop: (
      cost_of(module, module.computations[loop.attribute('body') or '']).bytes
    ),
  )


def _weight_bytes(work: Workload) -> float:
  """Returns the bytes per chip of the weights that a decoding step reads."""
  policy, mesh = work.policy, work.engine.mesh
  assert mesh is not None

  def on_chip(leaf: Any, axes: tuple[str, ...]) -> int:
    """Returns the number of elements of a parameter on one chip."""
    leaf_sharding = sharding.fitted_sharding(
      mesh, axes, leaf.shape, sharding.ROLLOUT_RULES
    )
    return math.prod(leaf_sharding.shard_shape(leaf.shape))

  params = policy.abstract_params()
  sizes = jax.tree.map(on_chip, params, policy.axes)
  if not policy.config.tied_embeddings:
    sizes['embedding'] = 0
  total = sum(jax.tree.leaves(sizes))
  return float(total * jnp.dtype(policy.config.dtype).itemsize)
