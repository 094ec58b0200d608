# SPDX-License-Identifier: Apache-2.0
"""Sampling engine: prompts to responses, on the trainer's mesh and parameters.

Prefill processes every unique prompt once; the KV cache is then repeated for
each response, and all responses are decoded together until the last has ended.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from covrl.models.cache import KVCache, repeat_rows
from covrl.models.layers import constrain
from covrl.models.policy import Policy
from covrl.parallel import distributed, sharding
from covrl.rollout.samples import (
  HostArray,
  Samples,
  count_positions,
  empty_samples,
)
from covrl.rollout.sampling import Sampling, sample_token


class SamplingEngine:
  """Samples responses with a policy's current parameters.

  One program is compiled per shape of prompts and group size; temperature,
  top-p and top-k are traced. A response depends on its prompt, the key and its
  sequence id; not on other responses, its row, or the mesh.

  Attributes:
    policy: the model to sample from.
    mesh: mesh over which rows are split; `None` is the default device.
    end_ids: tokens that end a response.
    pad_id: token that fills the rest of a row. If the policy samples it, it
      counts like any other token.
    max_response_length: maximum number of tokens of a response.
  """

  def __init__(
    self,
    policy: Policy,
    mesh: Mesh | None = None,
    *,
    end_ids: Sequence[int],
    pad_id: int,
    max_response_length: int,
  ) -> None:
    """Checks the token ids and the maximum length.

    Raises:
      ValueError: if an id is not in the vocabulary, or the maximum length is
        less than 1.
    """
    vocab_size = policy.config.vocab_size
    for token in (*end_ids, pad_id):
      if not 0 <= token < vocab_size:
        raise ValueError(
          f'token ids must lie in [0, {vocab_size}), got {token}'
        )
    if max_response_length < 1:
      raise ValueError(
        f'max_response_length must be at least 1, got {max_response_length}'
      )
    self.policy = policy
    self.mesh = mesh
    self.end_ids = tuple(end_ids)
    self.pad_id = pad_id
    self.max_response_length = max_response_length
    generate = functools.partial(
      _generate,
      policy,
      end_ids=self.end_ids,
      pad_id=pad_id,
      max_length=max_response_length,
    )

    # Without `out_shardings` XLA may choose shardings that the mesh's axes
    # cannot express.
    @functools.cache
    def program(row_sharding: NamedSharding | None) -> Any:
      return jax.jit(
        generate,
        static_argnames=('group_size', 'reshard_by_layer'),
        out_shardings=row_sharding,
      )

    self._program = program

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
    with self._use_mesh():
      return self._program(self._row_sharding((count,)))(
        params,
        self._put(prompts),
        self._put(prompt_mask),
        key,
        self._put(sequence_ids),
        sampling,
        group_size=group_size,
        reshard_by_layer=self._reshards_by_layer(params),
      )

  def trace(
    self, params: PyTree, count: int, width: int, *, group_size: int
  ) -> jax.stages.Traced:
    """Traces the program of `sample` for given shapes, without arrays.

    Args:
      params: shapes and shardings of the policy's parameters.
      count: number of prompts.
      width: padded length of a prompt, in tokens.
      group_size: responses per prompt.
    """

    def rows(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
      return jax.ShapeDtypeStruct(
        shape, dtype, sharding=self._row_sharding(shape)
      )

    key = jax.eval_shape(lambda: jax.random.key(0))
    sampling = jax.eval_shape(Sampling.make)
    with self._use_mesh():
      return self._program(self._row_sharding((count * group_size,))).trace(
        params,
        rows((count, width), jnp.int32),
        rows((count, width), bool),
        key,
        rows((count * group_size,), jnp.int32),
        sampling,
        group_size=group_size,
        reshard_by_layer=self._reshards_by_layer(params),
      )

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


class _DecodeState(NamedTuple):
  """Carry of the decoding loop.

  Attributes:
    t: number of tokens sampled so far.
    ended: true for rows that have ended.
    token: the last token of each row, not in the cache yet.
    samples: the samples so far, written up to column `t`.
    cache: keys and values of prompt and response, without the last token.
  """

  t: Int[Array, '']
  ended: Bool[Array, ' S']
  token: Int[Array, ' S']
  samples: Samples
  cache: KVCache


def _generate(
  policy: Policy,
  params: PyTree,
  prompts: Int[Array, 'P Tp'],
  prompt_mask: Bool[Array, 'P Tp'],
  key: Key[Array, ''],
  sequence_ids: Int[Array, ' S'],
  sampling: Sampling,
  *,
  group_size: int,
  reshard_by_layer: bool,
  end_ids: tuple[int, ...],
  pad_id: int,
  max_length: int,
) -> Samples:
  """The compiled program: prefill, repeat the cache, decode."""
  prompt_length = prompts.shape[1]
  params = jax.tree.map(
    _shard_param_by_layer if reshard_by_layer else _shard_param,
    policy.compute_params(params),
    policy.axes,
  )
  row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, sequence_ids)
  lengths = repeat_rows(jnp.sum(prompt_mask, axis=1), group_size)

  def sample_next(
    state: _DecodeState, hidden: Float[Array, 'S D'], cache: KVCache
  ) -> _DecodeState:
    logits = policy.project(params, hidden)
    keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, state.t)
    token, *logprobs = sample_token(logits, keys, sampling)
    return _append_token(state, token, logprobs, cache, end_ids=end_ids)

  def unfinished(state: _DecodeState) -> Bool[Array, '']:
    return (state.t < max_length) & ~jnp.all(state.ended)

  def body(state: _DecodeState) -> _DecodeState:
    read = state.t - 1
    hidden, cache = policy.decode(
      params,
      state.token,
      lengths + read,
      state.cache,
      prompt_length + read,
      ~state.ended,
    )
    return sample_next(state, hidden, cache)

  # The last sampled token is never decoded, so the cache has no slot for it.
  hidden, cache = policy.prefill(
    params,
    prompts,
    count_positions(prompt_mask),
    prompt_mask,
    prompt_length,
  )
  hidden, cache = repeat_rows(hidden, group_size), cache.repeat(group_size)
  cache = cache.pad_to(prompt_length + max_length - 1)
  start = _DecodeState(
    t=jnp.zeros((), jnp.int32),
    ended=lengths == 0,
    token=jnp.zeros(lengths.shape, jnp.int32),
    samples=empty_samples(
      (lengths.shape[0], max_length), pad_id, policy.config.stats_dtype
    ),
    cache=cache,
  )
  start = sample_next(start, hidden, cache)
  final = jax.lax.while_loop(unfinished, body, start)
  return final.samples._replace(truncated=~final.ended)


def _shard_param(leaf: Array, axes: Sequence[str | None]) -> Array:
  """Shards a parameter as the sampler needs it."""
  return constrain(leaf, *axes)


def _shard_param_by_layer(leaf: Array, axes: Sequence[str | None]) -> Array:
  """Shards stacked parameters layer by layer: at most one layer is gathered."""
  if axes[0] != 'layers':
    return _shard_param(leaf, axes)
  layers = jax.lax.map(lambda layer: _shard_param(layer, axes[1:]), leaf)
  return _shard_param(layers, axes)


def _append_token(
  state: _DecodeState,
  token: Int[Array, ' S'],
  logprobs: Sequence[Float[Array, ' S']],
  cache: KVCache,
  *,
  end_ids: tuple[int, ...],
) -> _DecodeState:
  """Writes one column of samples, in rows that have not ended."""
  samples, live = state.samples, ~state.ended

  def write(rows: Array, column: Array) -> Array:
    before = jax.lax.dynamic_index_in_dim(rows, state.t, 1, keepdims=False)
    column = jnp.where(live, column.astype(rows.dtype), before)
    return jax.lax.dynamic_update_index_in_dim(rows, column, state.t, 1)

  samples = samples._replace(
    response_tokens=write(samples.response_tokens, token),
    response_mask=write(samples.response_mask, live),
    sampler_logprobs=write(samples.sampler_logprobs, logprobs[0]),
    behaviour_logprobs=write(samples.behaviour_logprobs, logprobs[1]),
  )
  ends = jnp.isin(token, jnp.asarray(end_ids, jnp.int32))
  return _DecodeState(
    t=state.t + 1,
    ended=state.ended | ends,
    token=token,
    samples=samples,
    cache=cache,
  )
