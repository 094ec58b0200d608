# SPDX-License-Identifier: Apache-2.0
"""Compiled programs of engines whose requests are added between segments."""

from __future__ import annotations

import contextlib

import jax
from jax import P
from jax.sharding import Mesh
from jaxtyping import Array, Key, PyTree

from covrl.parallel import sharding
from covrl.rollout.admission import Admission
from covrl.rollout.decoder import SlotDecoder
from covrl.rollout.layout import constrain_state, count_shards
from covrl.rollout.samples import SampledTokens
from covrl.rollout.slots import State


class SlotPrograms:
  """Programs that admit requests and decode a segment; they donate the state.

  Attributes:
    admit: processes prompts, see `SlotDecoder.admit`.
    run: decodes one segment of the slots.
  """

  def __init__(
    self, decoder: SlotDecoder, mesh: Mesh | None, segment: int
  ) -> None:
    """Jits the programs.

    Args:
      decoder: the decoder.
      mesh: mesh over which rows are split; `None` is the default device.
      segment: tokens of each response that `run` samples, at most.
    """
    self._decoder, self._mesh, self._segment = decoder, mesh, segment
    self._shards = count_shards(mesh)
    self.admit = jax.jit(self._admit, donate_argnums=1)
    self.run = jax.jit(self._run, donate_argnums=1)

  def constrained(self, state: State) -> State:
    """Splits a state over the mesh, inside a program."""
    return constrain_state(self._mesh, state, self._shards)

  def use_mesh(self) -> contextlib.AbstractContextManager[object]:
    """The context in which the programs are called."""
    return sharding.use_mesh(self._mesh, sharding.ROLLOUT_RULES)

  def _admit(
    self,
    params: PyTree,
    state: State,
    admission: Admission,
    key: Key[Array, ''] | None = None,
  ) -> tuple[State, SampledTokens]:
    state, sampled = self._decoder.admit(params, state, admission, key)
    return self.constrained(state), self._replicated(sampled)

  def _run(self, params: PyTree, state: State) -> tuple[State, SampledTokens]:
    state, sampled = self._decoder.run(params, state, steps=self._segment)
    return self.constrained(state), self._replicated(sampled)

  def _replicated(self, sampled: SampledTokens) -> SampledTokens:
    if self._mesh is None:
      return sampled
    return jax.lax.with_sharding_constraint(sampled, P())
