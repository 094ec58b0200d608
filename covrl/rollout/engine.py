# SPDX-License-Identifier: Apache-2.0
"""Sampling engine: prompts to responses, on the trainer's mesh and parameters.

Every unique prompt is processed once, and its keys and values are shared by all
responses to it. Responses are decoded in a fixed number of slots, which are
refilled from a queue on the device; the host looks once per segment of tokens,
and reduces the number of slots when the queue is empty.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import P
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Int, Key, PyTree

from covrl.models.cache import DecodeCache
from covrl.models.layers import constrain
from covrl.models.policy import Policy
from covrl.parallel import distributed, sharding
from covrl.rollout.samples import HostArray, Samples
from covrl.rollout.sampling import Sampling
from covrl.rollout.slots import SlotArrays, SlotDecoder, State, shrink

# Slots of a shard are not reduced below this number, nor more often.
MIN_SLOTS = 8
MAX_SIZES = 4


class TracedPrograms(NamedTuple):
  """The engine's programs, traced without arrays.

  Attributes:
    start: prefill and first tokens; parameters are gathered in it.
    run: one segment of decoding.
    cache: shapes and shardings of the KV cache.
  """

  start: jax.stages.Traced
  run: jax.stages.Traced
  cache: DecodeCache


class _Layout(NamedTuple):
  """Static division of requests into shards and slots.

  Attributes:
    copies: shards that process each prompt, each for a part of its group.
    shards: number of shards.
    slots: numbers of slots per shard: at first, and to reduce it to.
  """

  copies: int
  shards: int
  slots: tuple[int, ...]


class SamplingEngine:
  """Samples responses with a policy's current parameters.

  A few programs are compiled per shape of prompts and group size; sampling
  parameters are traced. A response depends on its prompt, the key and its
  sequence id, and not on other responses, its row, or the mesh: to the bit for
  fixed numbers of prompts and slots on one mesh, else up to rounding.

  Attributes:
    policy: the model to sample from.
    mesh: mesh over which rows are split; `None` is the default device.
    end_ids: tokens that end a response.
    pad_id: token that fills the rest of a row. If the policy samples it, it
      counts like any other token.
    max_response_length: maximum number of tokens of a response.
    slots: responses that are decoded together, at most; 0 for all.
    segment: tokens that are decoded between two looks of the host.
  """

  def __init__(
    self,
    policy: Policy,
    mesh: Mesh | None = None,
    *,
    end_ids: Sequence[int],
    pad_id: int,
    max_response_length: int,
    slots: int = 0,
    segment: int = 16,
  ) -> None:
    """Checks the arguments.

    Raises:
      ValueError: if an id is not in the vocabulary, or a number is too small.
    """
    vocab_size = policy.config.vocab_size
    for token in (*end_ids, pad_id):
      if not 0 <= token < vocab_size:
        raise ValueError(
          f'token ids must lie in [0, {vocab_size}), got {token}'
        )
    for name, number, least in (
      ('max_response_length', max_response_length, 1),
      ('slots', slots, 0),
      ('segment', segment, 1),
    ):
      if number < least:
        raise ValueError(f'{name} must be at least {least}, got {number}')
    self.policy = policy
    self.mesh = mesh
    self.end_ids = tuple(end_ids)
    self.pad_id = pad_id
    self.max_response_length = max_response_length
    self.slots = slots
    self.segment = min(segment, max(max_response_length - 1, 1))
    self._decoder = SlotDecoder(
      policy, self.end_ids, pad_id, max_response_length
    )
    self._start = jax.jit(self._start_state, static_argnames='layout')
    self._run = jax.jit(self._run_segment, static_argnums=3, donate_argnums=1)
    self._shrink = jax.jit(self._shrink_slots, static_argnums=(1, 2))
    self._place_params = jax.jit(self._place, static_argnums=1)

  def sample(
    self,
    params: PyTree,
    prompts: Int[HostArray, 'P Tp'],
    prompt_mask: Bool[HostArray, 'P Tp'],
    *,
    group_size: int,
    key: Key[Array, ''],
    sequence_ids: Int[HostArray, ' S'],
    sampling: Sampling,
    on_progress: Callable[[int], object] = lambda finished: None,
  ) -> Samples:
    """Samples `group_size` responses to each prompt.

    Args:
      params: parameters of the policy.
      prompts: token ids, padded on the left. A row without any real token is
        padding, and its responses are empty.
      prompt_mask: true for real tokens.
      group_size: responses per prompt.
      key: PRNG key of the iteration. Token `t` of a sequence is drawn with
        `fold_in(fold_in(key, sequence_id), t)`.
      sequence_ids: unique within the iteration, one per response.
      sampling: temperature and truncation.
      on_progress: called after each segment with the number of responses that
        are finished at least.

    Returns:
      Rows in the order of the prompts, split over the mesh if its size divides
      their number, else replicated.

    Raises:
      ValueError: if the ids are not one per response, or `group_size` < 1.
    """
    if group_size < 1:
      raise ValueError(f'group_size must be at least 1, got {group_size}')
    count = len(prompts) * group_size
    if sequence_ids.shape != (count,):
      raise ValueError(
        f'sequence_ids must have {len(prompts)} x {group_size} entries, '
        f'got shape {sequence_ids.shape}'
      )
    layout = self._layout(len(prompts), group_size)
    with self._use_mesh():
      params = self._placed(params)
      state, status = self._start(
        params,
        self._put(np.repeat(prompts, layout.copies, axis=0)),
        self._put(np.repeat(prompt_mask, layout.copies, axis=0)),
        key,
        self._put(sequence_ids),
        sampling,
        layout=layout,
      )
      slots = layout.slots[0]
      while True:
        live, waiting = _read(status)
        on_progress(count - layout.shards * (live + waiting))
        if live + waiting == 0:
          return state.samples
        needed = min(size for size in layout.slots if size >= live)
        if waiting == 0 and needed < slots:
          slots = needed
          state = state.with_slots(self._shrink(state, layout, slots))
        state, status = self._run(params, state, sampling, layout)

  def warm_up(
    self, params: PyTree, shape: tuple[int, int], *, group_size: int
  ) -> None:
    """Compiles and runs all programs of `sample` once, on padding.

    Args:
      params: parameters of the policy.
      shape: number of prompts and their padded length in tokens.
      group_size: responses per prompt.
    """
    layout = self._layout(shape[0], group_size)
    rows = (shape[0] * layout.copies, shape[1])
    sampling = Sampling.make()
    with self._use_mesh():
      params = self._placed(params)
      state, _ = self._start(
        params,
        self._put(np.full(rows, self.pad_id, np.int32)),
        self._put(np.zeros(rows, bool)),
        jax.random.key(0),
        self._put(np.arange(shape[0] * group_size, dtype=np.int32)),
        sampling,
        layout=layout,
      )
      for slots in layout.slots:
        if slots != layout.slots[0]:
          state = state.with_slots(self._shrink(state, layout, slots))
        if self.max_response_length > 1:
          state, _ = self._run(params, state, sampling, layout)

  def trace(
    self, params: PyTree, count: int, width: int, *, group_size: int
  ) -> TracedPrograms:
    """Traces the programs of `sample` for given shapes, without arrays.

    Args:
      params: shapes and shardings of the policy's parameters.
      count: number of prompts.
      width: padded length of a prompt, in tokens.
      group_size: responses per prompt.
    """
    layout = self._layout(count, group_size)

    def rows(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
      return jax.ShapeDtypeStruct(
        shape, dtype, sharding=self._row_sharding(shape)
      )

    key = jax.eval_shape(lambda: jax.random.key(0))
    sampling = jax.eval_shape(Sampling.make)
    reshard_by_layer = self._reshards_by_layer(params)
    prompts = (count * layout.copies, width)

    def start(params: PyTree, *arguments: Any) -> Any:
      placed = self._place(params, reshard_by_layer)
      return placed, *self._start_state(placed, *arguments, layout=layout)

    def like(leaf: Any, spec: P) -> jax.ShapeDtypeStruct:
      sharded = None if self.mesh is None else NamedSharding(self.mesh, spec)
      return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharded)

    with self._use_mesh():
      started = jax.jit(start).trace(
        params,
        rows(prompts, jnp.int32),
        rows(prompts, bool),
        key,
        rows((count * group_size,), jnp.int32),
        sampling,
      )
      placed, state, _ = started.out_info
      placed = jax.tree.map(like, placed, self._param_specs(params))
      state = jax.tree.map(like, state, self._state_specs(state, layout))
      return TracedPrograms(
        start=started,
        run=self._run.trace(placed, state, sampling, layout),
        cache=state.cache,
      )

  def _placed(self, params: PyTree) -> PyTree:
    """Parameters in the dtypes and shardings that decoding reads them in."""
    if self.mesh is None:
      is_placed = all(
        leaf.dtype == cast.dtype
        for leaf, cast in zip(
          jax.tree.leaves(params),
          jax.tree.leaves(jax.eval_shape(self.policy.compute_params, params)),
          strict=True,
        )
      )
      return params if is_placed else self._place_params(params, False)
    return self._place_params(params, self._reshards_by_layer(params))

  def _place(self, params: PyTree, reshard_by_layer: bool) -> PyTree:
    """Casts and shards parameters for decoding."""
    return jax.tree.map(
      _shard_param_by_layer if reshard_by_layer else _shard_param,
      self.policy.compute_params(params),
      self.policy.axes,
    )

  def _start_state(
    self, *arguments: Any, layout: _Layout
  ) -> tuple[State, Int[Array, ' 2']]:
    """The program before the first segment."""
    state = self._decoder.start(
      *arguments, shards=layout.shards, slots=layout.slots[0]
    )
    return self._constrained(state, layout)

  def _run_segment(
    self, params: PyTree, state: State, sampling: Sampling, layout: _Layout
  ) -> tuple[State, Int[Array, ' 2']]:
    """The program of one segment."""
    state = self._decoder.run(params, state, sampling, steps=self.segment)
    return self._constrained(state, layout)

  def _shrink_slots(
    self, state: State, layout: _Layout, slots: int
  ) -> SlotArrays:
    """The program that reduces the number of slots."""
    arrays = shrink(state, slots=slots)
    shrunk, _ = self._constrained(state.with_slots(arrays), layout)
    return shrunk.slot_arrays

  def _constrained(
    self, state: State, layout: _Layout
  ) -> tuple[State, Int[Array, ' 2']]:
    """The state with its shardings, and its status on every device."""
    status = state.status()
    if self.mesh is None:
      return state, status
    specs = self._state_specs(state, layout)
    state = jax.tree.map(jax.lax.with_sharding_constraint, state, specs)
    return state, jax.lax.with_sharding_constraint(status, P())

  def _state_specs(self, state: State, layout: _Layout) -> State:
    """Partition specs of a state; rows of one shard are on one device."""
    mesh = self.mesh
    if mesh is None:
      return jax.tree.map(lambda _: P(), state)
    rows = P(_row_axes(mesh, layout.shards))
    axes = (None, None, 'attention_heads', None, None)

    def of_cache(keys: Any) -> P:
      spec = sharding.fitted_spec(
        mesh, axes, keys.shape, sharding.ROLLOUT_RULES
      )
      return P(None, rows[0], spec[2])

    specs = jax.tree.map(lambda _: rows, state)
    cache, prompts = state.cache, state.cache.prompts
    own, shared = of_cache(cache.keys), of_cache(prompts.keys)
    shared = prompts._replace(keys=shared, values=shared, lengths=rows)
    return specs._replace(
      cache=specs.cache._replace(prompts=shared, keys=own, values=own)
    )

  def _param_specs(self, params: PyTree) -> PyTree:
    """Partition specs of the parameters for decoding."""

    def spec(leaf: Any, axes: Sequence[str | None]) -> P:
      if self.mesh is None:
        return P()
      rules = sharding.ROLLOUT_RULES
      return sharding.fitted_spec(self.mesh, axes, leaf.shape, rules)

    return jax.tree.map(spec, params, self.policy.axes)

  def _layout(self, count: int, group_size: int) -> _Layout:
    """Splits requests over the mesh.

    A prompt is processed on several shards, each with a part of its group, if
    that uses more devices.
    """
    copies, shards = 1, 1
    if self.mesh is not None:
      shards_of = {
        n: _num_shards(self.mesh, count * n)
        for n in range(1, group_size + 1)
        if group_size % n == 0
      }
      copies = max(shards_of, key=lambda n: (shards_of[n], -n))
      shards = shards_of[copies]
    own = count * group_size // shards
    slots = min(own, -(-self.slots // shards)) if self.slots else own
    sizes = [slots]
    while (
      len(sizes) < MAX_SIZES
      and sizes[-1] // 2 >= MIN_SLOTS
      and self.segment < self.max_response_length - 1
    ):
      sizes.append(-(-sizes[-1] // 2))
    return _Layout(copies=copies, shards=shards, slots=tuple(sizes))

  def _reshards_by_layer(self, params: PyTree) -> bool:
    """Whether parameters have other tensor shards than the engine's mesh.

    XLA cannot express that resharding, and all-gathers them instead; doing it
    layer by layer bounds the memory.
    """
    if self.mesh is None:
      return False
    shardings = [leaf.sharding for leaf in jax.tree.leaves(params)]
    shards = {
      each.mesh.shape['tensor']
      for each in shardings
      if isinstance(each, NamedSharding)
    }
    return bool(shards - {1, self.mesh.shape['tensor']})

  def _use_mesh(self) -> contextlib.AbstractContextManager[object]:
    """Context in which activations are constrained to the mesh."""
    return sharding.use_mesh(self.mesh, sharding.ROLLOUT_RULES)

  def _put(self, rows: HostArray) -> Array:
    """Puts rows on the mesh, split if its size divides their number."""
    row_sharding = self._row_sharding(rows.shape)
    if row_sharding is None:
      return jax.device_put(rows)
    return distributed.put_global(rows, row_sharding)

  def _row_sharding(self, shape: tuple[int, ...]) -> NamedSharding | None:
    """Sharding of rows; `None` without a mesh."""
    if self.mesh is None:
      return None
    axes = ('batch', *(None,) * (len(shape) - 1))
    return sharding.fitted_sharding(
      self.mesh, axes, shape, sharding.ROLLOUT_RULES
    )


def _read(status: Any) -> tuple[int, int]:
  """Waits for the numbers of live slots and of waiting requests of a shard."""
  if distributed.process_count() == 1:
    distributed.wait_until(status.is_ready)
  live, waiting = np.asarray(status).tolist()
  return live, waiting


def _row_axes(mesh: Mesh, count: int) -> tuple[str, ...]:
  """Mesh axes that split `count` rows."""
  spec = sharding.fitted_spec(
    mesh, ('batch',), (count,), sharding.ROLLOUT_RULES
  )
  return sharding.mesh_axes_of(spec[0])


def _num_shards(mesh: Mesh, count: int) -> int:
  """Number of shards of `count` rows."""
  return math.prod(mesh.shape[name] for name in _row_axes(mesh, count))


def _shard_param(leaf: Array, axes: Sequence[str | None]) -> Array:
  """Shards a parameter as the sampler needs it."""
  return constrain(leaf, *axes)


def _shard_param_by_layer(leaf: Array, axes: Sequence[str | None]) -> Array:
  """Shards stacked parameters layer by layer: at most one layer is gathered."""
  if axes[0] != 'layers':
    return _shard_param(leaf, axes)
  layers = jax.lax.map(lambda layer: _shard_param(layer, axes[1:]), leaf)
  return _shard_param(layers, axes)
