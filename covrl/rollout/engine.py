# SPDX-License-Identifier: Apache-2.0
"""The sampler: prompts to responses, on the trainer's mesh and weights.

Every unique prompt is read once; its keys and values are then shared out to
the responses, which are decoded together until the last of them has ended.
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
  Host,
  Samples,
  blank_samples,
  count_positions,
)
from covrl.rollout.sampling import Sampling, sample_token


class SamplingEngine:
  """Samples responses with a policy's current parameters.

  One program is compiled per shape of prompts and group size; temperature,
  top-p and top-k are traced. What a sequence becomes depends on its prompt,
  the key and its id; not on its neighbours, its row, or the mesh.

  Attributes:
    policy: whose parameters `sample` is given.
    mesh: over which rows are split; `None` is the default device.
    end_ids: tokens that end a response.
    pad_id: fills the rest of a row; a policy may also sample it, and then it
      counts like any token.
    max_response_length: at which a response is cut.
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
    """Checks the token ids.

    Raises:
      ValueError: if an id is not in the vocabulary, or no token fits.
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

    # Left to itself the compiler may lay rows out as no mesh can say.
    @functools.cache
    def program(place: NamedSharding | None) -> Any:
      return jax.jit(
        generate,
        static_argnames=('group_size', 'by_layer'),
        out_shardings=place,
      )

    self._program = program

  def sample(
    self,
    params: PyTree,
    prompts: Int[Host, 'P Tp'],
    prompt_mask: Bool[Host, 'P Tp'],
    *,
    group_size: int,
    key: Key[Array, ''],
    sequence_ids: Int[Host, ' S'],
    sampling: Sampling,
  ) -> Samples:
    """Draws `group_size` responses to each prompt.

    Args:
      params: of the policy.
      prompts: token ids, padded on the left. A row without any real token is
        padding, and its responses are empty.
      prompt_mask: true for real tokens.
      group_size: responses per prompt.
      key: PRNG key of the iteration. The noise of a sequence's token `t` comes
        from `fold_in(fold_in(key, sequence_id), t)`.
      sequence_ids: unique within the iteration, one per response.
      sampling: temperature and truncation.

    Returns:
      Rows in the order of the prompts, split over the mesh where its size
      divides them and else on every device.

    Raises:
      ValueError: if the ids are not one per response, or `group_size` < 1.
    """
    if group_size < 1:
      raise ValueError(f'group_size must be at least 1, got {group_size}')
    count = len(prompts) * group_size
    if sequence_ids.shape != (count,):
      raise ValueError(
        f'sequence_ids must name {len(prompts)} x {group_size} responses, '
        f'got shape {sequence_ids.shape}'
      )
    with self._mesh_in_use():
      return self._program(self._rows_on((count,)))(
        params,
        self._place(prompts),
        self._place(prompt_mask),
        key,
        self._place(sequence_ids),
        sampling,
        group_size=group_size,
        by_layer=self._comes_by_layer(params),
      )

  def trace(
    self, params: PyTree, count: int, width: int, *, group_size: int
  ) -> jax.stages.Traced:
    """Traces the program of `sample` for shapes, without any array.

    Args:
      params: shapes and shardings of the policy's parameters.
      count: prompts.
      width: of a prompt.
      group_size: responses per prompt.
    """

    def rows(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
      return jax.ShapeDtypeStruct(shape, dtype, sharding=self._rows_on(shape))

    key = jax.eval_shape(lambda: jax.random.key(0))
    sampling = jax.eval_shape(Sampling.make)
    with self._mesh_in_use():
      return self._program(self._rows_on((count * group_size,))).trace(
        params,
        rows((count, width), jnp.int32),
        rows((count, width), bool),
        key,
        rows((count * group_size,), jnp.int32),
        sampling,
        group_size=group_size,
        by_layer=self._comes_by_layer(params),
      )

  def _comes_by_layer(self, params: PyTree) -> bool:
    """Whether weights come in tensor shards, and leave in others.

    How they move then cannot be expressed by XLA, which gathers them whole.
    """
    if self.mesh is None:
      return False
    shardings = [leaf.sharding for leaf in jax.tree.leaves(params)]
    shards = {
      place.mesh.shape['tensor']
      for place in shardings
      if isinstance(place, NamedSharding)
    }
    return bool(shards - {1, self.mesh.shape['tensor']})

  def _mesh_in_use(self) -> contextlib.AbstractContextManager[object]:
    """Within it, activations are constrained to the mesh."""
    return sharding.in_use(self.mesh, sharding.ROLLOUT_RULES)

  def _place(self, rows: Host) -> Array:
    """Puts rows on the mesh, split where it divides them."""
    place = self._rows_on(rows.shape)
    return (
      jax.device_put(rows) if place is None else distributed.place(rows, place)
    )

  def _rows_on(self, shape: tuple[int, ...]) -> NamedSharding | None:
    """How rows lie on the mesh, if there is one."""
    if self.mesh is None:
      return None
    axes = ('batch', *(None,) * (len(shape) - 1))
    return sharding.fit(self.mesh, axes, shape, sharding.ROLLOUT_RULES)


class _Progress(NamedTuple):
  """What the decoding loop carries; columns before `t` are written.

  Attributes:
    t: tokens sampled so far.
    ended: rows that are finished.
    token: the last one sampled.
    samples: rows under construction.
    cache: prompt and response so far, but for the last token.
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
  by_layer: bool,
  end_ids: tuple[int, ...],
  pad_id: int,
  max_length: int,
) -> Samples:
  """The program: read prompts, share out their cache, decode."""
  prompt_length = prompts.shape[1]
  params = jax.tree.map(
    _laid_out_by_layer if by_layer else _laid_out,
    policy.compute_params(params),
    policy.axes,
  )
  row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, sequence_ids)
  lengths = repeat_rows(jnp.sum(prompt_mask, axis=1), group_size)

  def advance(
    progress: _Progress, hidden: Float[Array, 'S D'], cache: KVCache
  ) -> _Progress:
    logits = policy.project(params, hidden)
    keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, progress.t)
    token, *logprobs = sample_token(logits, keys, sampling)
    return _record(progress, token, logprobs, cache, end_ids=end_ids)

  def unfinished(progress: _Progress) -> Bool[Array, '']:
    return (progress.t < max_length) & ~jnp.all(progress.ended)

  def body(progress: _Progress) -> _Progress:
    read = progress.t - 1
    hidden, cache = policy.decode(
      params,
      progress.token,
      lengths + read,
      progress.cache,
      prompt_length + read,
      ~progress.ended,
    )
    return advance(progress, hidden, cache)

  # The last token is sampled, and never read.
  hidden, cache = policy.prefill(
    params,
    prompts,
    count_positions(prompt_mask),
    prompt_mask,
    prompt_length,
  )
  hidden, cache = repeat_rows(hidden, group_size), cache.repeat(group_size)
  cache = cache.extended(prompt_length + max_length - 1)
  start = _Progress(
    t=jnp.zeros((), jnp.int32),
    ended=lengths == 0,
    token=jnp.zeros(lengths.shape, jnp.int32),
    samples=blank_samples(
      (lengths.shape[0], max_length), pad_id, policy.config.stats_dtype
    ),
    cache=cache,
  )
  start = advance(start, hidden, cache)
  progress = jax.lax.while_loop(unfinished, body, start)
  return progress.samples._replace(truncated=~progress.ended)


def _laid_out(leaf: Array, axes: Sequence[str | None]) -> Array:
  """A parameter as the sampler holds it."""
  return constrain(leaf, *axes)


def _laid_out_by_layer(leaf: Array, axes: Sequence[str | None]) -> Array:
  """As `_laid_out`; on the way a chip may hold all of one layer, not of all."""
  if axes[0] != 'layers':
    return _laid_out(leaf, axes)
  layers = jax.lax.map(lambda layer: _laid_out(layer, axes[1:]), leaf)
  return _laid_out(layers, axes)


def _record(
  progress: _Progress,
  token: Int[Array, ' S'],
  logprobs: Sequence[Float[Array, ' S']],
  cache: KVCache,
  *,
  end_ids: tuple[int, ...],
) -> _Progress:
  """Writes one column, where the row had not ended before it."""
  samples, live = progress.samples, ~progress.ended

  def write(rows: Array, column: Array) -> Array:
    before = jax.lax.dynamic_index_in_dim(rows, progress.t, 1, keepdims=False)
    column = jnp.where(live, column.astype(rows.dtype), before)
    return jax.lax.dynamic_update_index_in_dim(rows, column, progress.t, 1)

  samples = samples._replace(
    response_tokens=write(samples.response_tokens, token),
    response_mask=write(samples.response_mask, live),
    sampler_logprobs=write(samples.sampler_logprobs, logprobs[0]),
    behaviour_logprobs=write(samples.behaviour_logprobs, logprobs[1]),
  )
  ends = jnp.isin(token, jnp.asarray(end_ids, jnp.int32))
  return _Progress(
    t=progress.t + 1,
    ended=progress.ended | ends,
    token=token,
    samples=samples,
    cache=cache,
  )
