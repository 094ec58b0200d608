# SPDX-License-Identifier: Apache-2.0
"""Compiled programs of the sampling engine: the start, a segment, fewer slots."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import P
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Int, PyTree

from covrl.models.cache import DecodeCache
from covrl.parallel import sharding
from covrl.rollout.decoder import SlotDecoder
from covrl.rollout.finished import SlotTokens, first_tokens
from covrl.rollout.layout import Layout, constrain_state, state_specs
from covrl.rollout.placement import (
  abstract_on_mesh,
  abstract_placed,
  trace_placement,
)
from covrl.rollout.samples import record
from covrl.rollout.sampling import Sampling
from covrl.rollout.slots import SlotArrays, State, shrink


class TracedPrograms(NamedTuple):
  """The engine's programs, traced without arrays.

  Attributes:
    place: casts and shards parameters for decoding; `None` if they already are in
      these dtypes and shardings.
    start: prefill and first tokens.
    prompts: number of prompts that one call of `start` processes.
    run: one segment of decoding.
    cache: shapes and shardings of the KV cache.
    layout: division into shards and slots.
  """

  place: jax.stages.Traced | None
  start: jax.stages.Traced
  prompts: int
  run: jax.stages.Traced
  cache: DecodeCache
  layout: Layout


class Report(NamedTuple):
  """Results of a program that the host reads.

  Attributes:
    status: largest numbers of live slots and of waiting requests of a shard.
    tokens: the new tokens.
  """

  status: Int[Array, ' 2']
  tokens: SlotTokens


class SamplerPrograms:
  """The programs of `SamplingEngine`, compiled once per shape.

  Attributes:
    start: prefill and first tokens; see `SlotDecoder.start`.
    run: one segment of decoding; its state is donated.
    shrink: the arrays of fewer slots.
  """

  def __init__(
    self, decoder: SlotDecoder, mesh: Mesh | None, segment: int
  ) -> None:
    """Jits the programs.

    Args:
      decoder: the functions to compile.
      mesh: the sampler's mesh; `None` is the default device.
      segment: tokens of each response that one call of `run` decodes.
    """
    self._decoder, self._mesh, self._segment = decoder, mesh, segment
    self.start = jax.jit(self._start_state, static_argnames='layout')
    self.run = jax.jit(self._run_segment, static_argnums=2, donate_argnums=1)
    self.shrink = jax.jit(self._shrink_slots, static_argnums=(1, 2))

  def trace(
    self,
    params: PyTree,
    shape: tuple[int, int],
    group_size: int,
    layout: Layout,
  ) -> TracedPrograms:
    """Traces the programs for given shapes, without arrays, on the mesh.

    Args:
      params: shapes and shardings of the policy's parameters.
      shape: number of prompts and their padded length in tokens.
      group_size: responses per prompt.
      layout: division of the requests.
    """
    count, width = shape
    policy = self._decoder.policy

    def abstract_rows(
      shape: tuple[int, ...], dtype: Any
    ) -> jax.ShapeDtypeStruct:
      return jax.ShapeDtypeStruct(
        shape, dtype, sharding=row_sharding(self._mesh, shape)
      )

    key = jax.eval_shape(lambda: jax.random.key(0))
    sampling = jax.eval_shape(Sampling.make)
    prompts_shape = (count * layout.shards_per_prompt, width)
    placed = abstract_placed(policy, params, self._mesh)
    traced_start = self.start.trace(
      placed,
      abstract_rows(prompts_shape, jnp.int32),
      abstract_rows(prompts_shape, bool),
      key,
      abstract_rows((count * group_size,), jnp.int32),
      sampling,
      layout=layout,
    )
    state, _ = traced_start.out_info
    specs = state_specs(self._mesh, state, layout.shards)
    state = abstract_on_mesh(self._mesh, state, specs)
    return TracedPrograms(
      place=trace_placement(policy, params, self._mesh),
      start=traced_start,
      prompts=count,
      run=self.run.trace(placed, state, layout),
      cache=state.cache,
      layout=layout,
    )

  def _start_state(
    self, *arguments: Any, layout: Layout
  ) -> tuple[State, Report]:
    """The program before the first segment."""
    state = self._decoder.start(
      *arguments, shards=layout.shards, slots=layout.slots[0]
    )
    return self._with_report(state, layout, first_tokens(state))

  def _run_segment(
    self, params: PyTree, state: State, layout: Layout
  ) -> tuple[State, Report]:
    """The program of one segment."""
    # Decoding reads only the first tokens of responses, so that a segment's
    # tokens can be recorded together.
    samples = state.samples
    state, steps = self._decoder.run(params, state, steps=self._segment)
    state = state._replace(samples=record(samples, steps, state.shards))
    tokens = SlotTokens(steps.request, steps.position, steps.token)
    return self._with_report(state, layout, tokens)

  def _shrink_slots(
    self, state: State, layout: Layout, slots: int
  ) -> SlotArrays:
    """The program that reduces the number of slots."""
    arrays = shrink(state, slots=slots)
    shrunk = self._constrain(state.with_slots(arrays), layout)
    return shrunk.slot_arrays

  def _with_report(
    self, state: State, layout: Layout, tokens: SlotTokens
  ) -> tuple[State, Report]:
    """The state with its shardings, and the report on every device."""
    report = Report(state.status(), tokens)
    if self._mesh is None:
      return state, report
    state = self._constrain(state, layout)
    return state, jax.lax.with_sharding_constraint(report, P())

  def _constrain(self, state: State, layout: Layout) -> State:
    return constrain_state(self._mesh, state, layout.shards)


def row_sharding(
  mesh: Mesh | None, shape: tuple[int, ...]
) -> NamedSharding | None:
  """Sharding of rows, which are split if the mesh divides their number."""
  if mesh is None:
    return None
  axes = ('batch', *(None,) * (len(shape) - 1))
  return sharding.fitted_sharding(mesh, axes, shape, sharding.ROLLOUT_RULES)
