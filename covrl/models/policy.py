# SPDX-License-Identifier: Apache-2.0
"""Policy: a language model as pure functions of a parameter pytree.

The same modules score whole sequences for the trainer and decode token by token
for the sampler, so that both compute the same probabilities.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt

from covrl.models.cache import DecodeCache, PromptCache
from covrl.models.config import ModelConfig
from covrl.models.experts import RoutingStats
from covrl.models.input_checks import (
  check_params,
  check_recorded_experts,
  check_rows,
  check_token_ids,
  param_shapes,
)
from covrl.models.layers import soft_cap
from covrl.models.lora import join_adapters, merge_adapters, split_adapters
from covrl.models.transformer import Transformer, make_rngs
from covrl.models.value_head import apply_value_head
from covrl.parallel import sharding


@dataclasses.dataclass(frozen=True)
class Policy:
  """A language model as functions of its parameters.

  Parameters are a nested dictionary of arrays; everything else is static, so a
  policy may be closed over, or passed to `jax.jit` as a static argument.

  Attributes:
    config: sizes, options and dtypes of the model.

  >>> from covrl.models import tiny
  >>> policy = Policy(tiny(vocab_size=16))
  >>> params = policy.init(jax.random.key(0))
  >>> policy.logits(params, jnp.array([[1, 2, 3]])).shape
  (1, 3, 16)
  """

  config: ModelConfig

  @functools.cached_property
  def graphdef(self) -> nnx.GraphDef[Transformer]:
    """Graph definition of the modules, without parameters; static."""
    return self._graphdef_and_params[0]

  @functools.cached_property
  def num_params(self) -> int:
    """Number of parameters."""
    return sum(math.prod(shape) for shape in self._shapes.values())

  @functools.cached_property
  def _shapes(self) -> dict[str, tuple[int, ...]]:
    return param_shapes(self.abstract_params())

  @functools.cached_property
  def axes(self) -> PyTree:
    """Logical axis names of every parameter, in a tree like the parameters'."""
    return nnx.to_pure_dict(
      jax.tree.map(
        lambda param: param.replace(param.get_metadata('axes')),
        self._graphdef_and_params[1],
        is_leaf=lambda leaf: isinstance(leaf, nnx.Param),
      )
    )

  @functools.cached_property
  def _graphdef_and_params(self) -> tuple[nnx.GraphDef[Transformer], PyTree]:
    """Graph definition and abstract parameters."""
    return nnx.split(
      nnx.eval_shape(
        lambda: Transformer(self.config, rngs=make_rngs(jax.random.key(0)))
      )
    )

  def init(self, key: Key[Array, ''], mesh: Mesh | None = None) -> PyTree:
    """Initialises parameters; each device computes only its own shards.

    The values depend on the key and not on the mesh.

    Args:
      key: PRNG key.
      mesh: mesh to shard the parameters over; `None` is the default device.

    Returns:
      A nested dictionary of arrays in `config.param_dtype`.
    """
    return self._create(key, mesh, lambda params: params)

  def init_adapters(
    self, key: Key[Array, ''], mesh: Mesh | None = None
  ) -> PyTree:
    """Initialises the adapters alone, with the values that `init` gives them.

    No other parameters are computed.
    """
    return self._create(key, mesh, lambda params: split_adapters(params)[1])

  def _create(
    self,
    key: Key[Array, ''],
    mesh: Mesh | None,
    select: Callable[[PyTree], PyTree],
  ) -> PyTree:
    """Initialises the parameters that `select` returns."""

    def create(key: Key[Array, '']) -> PyTree:
      module = Transformer(self.config, rngs=make_rngs(key))
      return select(nnx.to_pure_dict(nnx.state(module)))

    if mesh is None:
      return jax.jit(create)(key)
    abstract = select(self.abstract_params(mesh))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(create, out_shardings=shardings)(key)

  @functools.cached_property
  def base(self) -> Policy:
    """The same policy without adapters."""
    config = dataclasses.replace(self.config, lora=None)
    return dataclasses.replace(self, config=config)

  def split(self, params: PyTree) -> tuple[PyTree, PyTree]:
    """Splits parameters into trainable and frozen ones.

    Returns:
      All parameters and `{}`; with adapters, the adapters and
      `{'base': other parameters}`.
    """
    if self.config.lora is None:
      return params, {}
    base, adapters = split_adapters(params)
    return adapters, {'base': base}

  def join(self, trainable: PyTree, frozen: Mapping[str, PyTree]) -> PyTree:
    """Inverse of `split`; copies no array."""
    if self.config.lora is None:
      return trainable
    return join_adapters(frozen['base'], trainable)

  def merge(self, params: PyTree, dtype: DTypeLike | None = None) -> PyTree:
    """Merges adapters into the matrices: parameters of `base`, or in a dtype.

    Their sharding is that of the given parameters.
    """
    lora = self.config.lora
    if lora is None:
      return params
    base, _ = split_adapters(params)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, base)
    merge = functools.partial(merge_adapters, lora=lora, dtype=dtype)
    return jax.jit(merge, out_shardings=shardings)(params)

  def abstract_params(self, mesh: Mesh | None = None) -> PyTree:
    """Shapes, dtypes and shardings of the parameters, without the parameters.

    Args:
      mesh: mesh to shard over; `None` leaves shardings out.

    Returns:
      A tree of `jax.ShapeDtypeStruct`, suitable to restore a checkpoint.
    """
    shapes = nnx.to_pure_dict(self._graphdef_and_params[1])
    if mesh is None:
      return shapes

    def with_sharding(
      leaf: Any, axes: tuple[str | None, ...]
    ) -> jax.ShapeDtypeStruct:
      rules = sharding.TRAIN_RULES
      fitted = sharding.fitted_sharding(mesh, axes, leaf.shape, rules)
      return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=fitted)

    return jax.tree.map(with_sharding, shapes, self.axes)

  def hidden(
    self,
    params: PyTree,
    tokens: Int[Array, 'B T'],
    *,
    positions: Int[Array, 'B T'],
    segment_ids: Int[Array, 'B T'],
  ) -> Float[Array, 'B T D']:
    """Final hidden states of whole rows, padded or packed.

    A token attends to itself and to earlier tokens of its segment.

    Args:
      params: parameters, see `init`.
      tokens: rows of one or several sequences.
      positions: index within the sequence, from 0.
      segment_ids: index of the sequence within the row, from 1; 0 is padding,
        which no token attends to and whose states are finite but meaningless.

    Raises:
      TypeError: an array is not of integers.
      ValueError: shapes differ, the parameters are those of another model, a
        token id is outside the vocabulary, or a position or segment negative;
        values are checked outside of `jax.jit`.
    """
    hidden, _ = self.hidden_and_routing(
      params, tokens, positions=positions, segment_ids=segment_ids
    )
    return hidden

  def hidden_and_routing(
    self,
    params: PyTree,
    tokens: Int[Array, 'B T'],
    *,
    positions: Int[Array, 'B T'],
    segment_ids: Int[Array, 'B T'],
    one_sequence: bool = False,
    recorded_experts: UInt[Array, 'B T L k'] | None = None,
  ) -> tuple[Float[Array, 'B T D'], RoutingStats | None]:
    """Like `hidden`, with routing statistics if there are experts.

    Args:
      params: parameters, see `init`.
      tokens: rows of one or several sequences.
      positions: index within the sequence, from 0.
      segment_ids: index of the sequence within the row, from 1; 0 is padding.
      one_sequence: whether no row has several sequences; GPUs then need no
        attention mask in memory.
      recorded_experts: experts to route each token to, see
        `covrl.models.experts.ExpertRecordSpec`; those that were not recorded, and
        all if `None`, are the router's likeliest.

    Raises:
      TypeError: as for `hidden`; the record is not of integers.
      ValueError: as for `hidden`; the record has another shape, a missing expert
        or one twice for a token; or the model has no experts.
    """
    check_rows(tokens, positions, segment_ids, self.config.vocab_size)
    if recorded_experts is not None:
      check_recorded_experts(recorded_experts, tokens, self.config)
    return self._module(params)(
      tokens,
      positions,
      segment_ids,
      one_sequence=one_sequence,
      recorded_experts=recorded_experts,
    )

  def unembedding(self, params: PyTree) -> Float[Array, 'D V']:
    """The matrix that turns hidden states into logits, in `config.dtype`.

    Raises:
      ValueError: the matrix of the parameters has another shape.
    """
    tied = self.config.tied_embeddings
    name = 'embedding' if tied else 'head'
    check_params({name: params[name]}, {name: self._shapes[name]})
    matrix = params[name].astype(self.config.dtype)
    return matrix.T if tied else matrix

  def project(
    self, params: PyTree, hidden: Float[Array, '*B D']
  ) -> Float[Array, '*B V']:
    """Logits of hidden states, in float32 or wider.

        z = hidden @ unembedding,    z ← logit_soft_cap · tanh(z / logit_soft_cap)

    at full precision: an accelerator's default would round a float32 product
    to bfloat16 or TF32.
    """
    logits = jnp.einsum(
      '...d,dv->...v',
      hidden,
      self.unembedding(params),
      precision=jax.lax.Precision.HIGHEST,
      preferred_element_type=self.config.stats_dtype,
    )
    return soft_cap(logits, self.config.logit_soft_cap)

  def values(
    self, params: PyTree, hidden: Float[Array, '*B D']
  ) -> Float[Array, '*B']:
    """Values of hidden states, in float32 or wider.

    The value at a token is that of the sequence up to and with it, before the
    next token.

    Args:
      params: parameters of a model with `config.value_head`.
      hidden: final hidden states, see `hidden`.
    """
    dtype = self.config.stats_dtype
    return apply_value_head(params['value_head'], hidden, dtype)

  def logits(
    self, params: PyTree, tokens: Int[Array, 'B T']
  ) -> Float[Array, 'B T V']:
    """Logits of unpadded rows, one sequence each; a large array, for checks."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    segments = jnp.ones_like(tokens)
    hidden = self.hidden(
      params, tokens, positions=positions, segment_ids=segments
    )
    return self.project(params, hidden)

  def cast_params(self, params: PyTree) -> PyTree:
    """Casts matrices to `config.dtype`, once before a loop that reads them often.

    All functions give the same results with the cast parameters.
    """
    dtypes = self.cast_dtypes(params)
    return jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), params, dtypes)

  def cast_dtypes(self, params: PyTree) -> PyTree:
    """Dtypes of `cast_params`, of arrays or of their shapes and dtypes."""

    def dtype(leaf: Any, axes: tuple[str | None, ...]) -> Any:
      is_matrix = len(axes) - ('layers' in axes) > 1
      return jnp.dtype(self.config.dtype) if is_matrix else leaf.dtype

    return jax.tree.map(dtype, params, self.axes)

  def prefill(
    self,
    params: PyTree,
    tokens: Int[Array, 'P T'],
    positions: Int[Array, 'P T'],
    mask: Bool[Array, 'P T'],
    *,
    chunk: int = 0,
    record_experts: bool = False,
  ) -> tuple[Float[Array, 'P D'], PromptCache]:
    """Prefill: processes prompts that are padded on the left.

    Args:
      params: parameters, see `init`.
      tokens: prompts, their last tokens in the last column.
      positions: index within the prompt, from 0 at its first real token.
      mask: true for real tokens.
      chunk: columns that are processed together, which bounds the memory of
        activations; 0 for all.
      record_experts: whether the cache has the experts of the tokens.

    Returns:
      The hidden state at the last token, and the cache of the prompts.
    """
    check_token_ids(tokens, 'P T', self.config.vocab_size)
    return self._module(params).prefill(
      tokens, positions, mask, chunk=chunk, record_experts=record_experts
    )

  def decode(
    self,
    params: PyTree,
    token: Int[Array, ' S'],
    cache: DecodeCache,
    live: Bool[Array, ' S'] | None = None,
    *,
    record_experts: bool = False,
  ) -> tuple[Float[Array, 'S D'], DecodeCache]:
    """Decodes: processes one more token of each row.

    Args:
      params: parameters, see `init`.
      token: the next token of each row.
      cache: keys and values of the tokens before.
      live: rows to compute; the states of others are meaningless, and their
        cache is unchanged. `None` computes all.
      record_experts: whether the cache has the experts of the token.

    Returns:
      The hidden state at the token, and the cache with the token in it.
    """
    check_token_ids(token, 'S', self.config.vocab_size)
    live = jnp.ones(token.shape, bool) if live is None else live
    return self._module(params).decode(
      token, cache, live, record_experts=record_experts
    )

  def _module(self, params: PyTree) -> Transformer:
    """The modules with the given parameters.

    Raises:
      ValueError: the parameters are those of another model.
    """
    check_params(params, self._shapes)
    return nnx.merge(self.graphdef, params)
