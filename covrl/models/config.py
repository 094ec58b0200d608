# SPDX-License-Identifier: Apache-2.0
"""Model configuration: sizes and options of a decoder-only transformer."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from covrl.array_checks import check_integer, check_number
from covrl.models.lora import Lora
from covrl.models.remat import REMAT_POLICIES, RematPolicy
from covrl.models.rope import RopeScaling, YarnScaling, base_frequencies

# Fields that must be at least 1, and fields that must be positive.
_SIZES = (
  'vocab_size',
  'num_layers',
  'model_dim',
  'num_heads',
  'num_kv_heads',
  'head_dim',
  'hidden_dim',
)
_POSITIVE = (
  'rope_theta',
  'local_rope_theta',
  'norm_eps',
  'attention_scale',
  'attention_soft_cap',
  'logit_soft_cap',
)
_FLAGS = (
  'qkv_bias',
  'qk_norm',
  'unit_offset',
  'post_norms',
  'scaled_embeddings',
  'tied_embeddings',
  'value_head',
)
_DTYPES = ('float64', 'float32', 'bfloat16', 'float16')

Activation = Literal['silu', 'gelu_tanh']
_ACTIVATIONS = get_args(Activation)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experts:
  """Options of a mixture of experts.

  Attributes:
    count: number of experts per layer.
    per_token: number of experts each token is routed to.
    normalised: whether the router probabilities of these are divided by their
      sum.

  Raises:
    TypeError: if a number is not an integer.
    ValueError: if `per_token` is less than 1 or more than `count`.
  """

  count: int
  per_token: int
  normalised: bool = True

  def __post_init__(self) -> None:
    for name in ('count', 'per_token'):
      check_integer(f'{name} of experts', getattr(self, name), 1)
    if not 1 <= self.per_token <= self.count:
      raise ValueError(
        f'experts per token must be 1 to {self.count}, the number of experts,'
        f' got {self.per_token}'
      )


# Options of parts of the model, and their types, also in words.
_PARTS = (
  ('rope_scaling', RopeScaling, 'a scaling of covrl.models.rope'),
  ('experts', Experts, 'an Experts object'),
  ('lora', Lora, 'a Lora object'),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """Sizes, options and dtypes of a decoder-only transformer.

  Hashable, so that it may be a static argument of jitted functions.

  Attributes:
    vocab_size: number of tokens of the vocabulary.
    num_layers: number of blocks of attention and feed-forward layers.
    model_dim: width of the residual stream.
    num_heads: number of query heads.
    num_kv_heads: number of key and value heads, each shared by
      `num_heads / num_kv_heads` query heads.
    head_dim: width of one head; even, since rotary embeddings act on pairs.
    hidden_dim: width of the gated feed-forward layer, or of each expert.
    rope_theta: base of the rotary wavelengths.
    rope_scaling: scaling of the rotary frequencies for long contexts; `None`
      does not scale.
    windows: sliding window of each layer in tokens, the current one included;
      0 is unlimited, and an empty tuple makes all layers unlimited.
    local_rope_theta: base of the wavelengths of layers with a window, which
      are then not scaled; `None` treats them like the others.
    qkv_bias: whether queries, keys and values have a bias.
    qk_norm: whether each head's queries and keys are normalised.
    attention_scale: scale of attention scores; head_dim^−1/2 if `None`.
    attention_soft_cap: soft cap of attention scores (by tanh), or `None`.
    logit_soft_cap: soft cap of the logits (by tanh), or `None`.
    activation: activation of the feed-forward gate.
    norm_eps: added to the mean square before the root.
    unit_offset: whether norms multiply by 1 + scale instead of scale.
    post_norms: whether the outputs of attention and feed-forward layers are
      normalised too.
    scaled_embeddings: whether embeddings are multiplied by √model_dim.
    tied_embeddings: whether the unembedding is the transposed embedding.
    experts: mixture of experts in place of the feed-forward layers, or `None`.
    lora: low-rank adapters, which alone are trained; `None` trains all
      parameters.
    value_head: whether the model has a value head, one number per token, in
      place of the unembedding, as a critic has.
    dtype: dtype of activations and matrix products; softmax, norms and logits
      are at least float32. Any argument of `jnp.dtype`; stored as its name.
    param_dtype: dtype of the stored parameters, given and stored like `dtype`.
    remat: activations that the backward pass recomputes; see
      `covrl.models.remat`.

  Raises:
    TypeError: if a value is of another type.
    ValueError: if a value is out of range or two of them contradict.

  >>> tiny(16).num_heads // tiny(16).num_kv_heads
  2
  >>> dataclasses.replace(tiny(16), dtype=jnp.bfloat16).dtype
  'bfloat16'
  """

  vocab_size: int
  num_layers: int
  model_dim: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  hidden_dim: int
  rope_theta: float = 10000.0
  rope_scaling: RopeScaling | None = None
  windows: tuple[int, ...] = ()
  local_rope_theta: float | None = None
  qkv_bias: bool = False
  qk_norm: bool = False
  attention_scale: float | None = None
  attention_soft_cap: float | None = None
  logit_soft_cap: float | None = None
  activation: Activation = 'silu'
  norm_eps: float = 1e-6
  unit_offset: bool = False
  post_norms: bool = False
  scaled_embeddings: bool = False
  tied_embeddings: bool = True
  experts: Experts | None = None
  lora: Lora | None = None
  value_head: bool = False
  dtype: DTypeLike = 'float32'
  param_dtype: DTypeLike = 'float32'
  remat: RematPolicy = 'nothing'

  def __post_init__(self) -> None:
    for name in ('dtype', 'param_dtype'):
      # Plain strings, so that equal configs are equal and hash alike.
      object.__setattr__(self, name, _dtype_name(name, getattr(self, name)))
    for name in _SIZES:
      check_integer(name, getattr(self, name), 1)
    for name in _FLAGS:
      if not isinstance(getattr(self, name), bool):
        raise TypeError(
          f'{name} must be true or false, got {getattr(self, name)!r:.80}'
        )
    for name, kind, label in _PARTS:
      part = getattr(self, name)
      if part is not None and not isinstance(part, kind):
        raise TypeError(f'{name} must be {label} or None, got {part!r:.80}')
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        'num_heads must be a multiple of num_kv_heads, '
        f'got {self.num_heads} and {self.num_kv_heads}'
      )
    if self.head_dim % 2:
      raise ValueError(
        f'head_dim must be even for rotary positions, got {self.head_dim}'
      )
    for name in _POSITIVE:
      value = getattr(self, name)
      if value is not None:
        check_number(name, value, 0, is_open=True)
    if self.activation not in _ACTIVATIONS:
      raise ValueError(
        f'activation must be one of {_ACTIVATIONS}, got {self.activation!r}'
      )
    self._check_windows()
    if self.remat not in REMAT_POLICIES:
      raise ValueError(
        f'remat must be one of {tuple(REMAT_POLICIES)}, got {self.remat!r}'
      )
    if self.lora is not None and self.experts is not None:
      routed = {'gate', 'up', 'down'} & set(self.lora.targets)
      if routed:
        raise ValueError(
          'adapters of a mixture of experts must be those of query, key, value'
          f' and output only, got {sorted(routed)}'
        )

  def _check_windows(self) -> None:
    """Refuses windows whose number or size does not fit the layers."""
    if self.windows and len(self.windows) != self.num_layers:
      raise ValueError(
        f'windows must be one number for each of {self.num_layers} layers, '
        f'got {len(self.windows)}'
      )
    for window in self.windows:
      check_integer('windows', window, 0)
    if self.local_rope_theta and isinstance(self.rope_scaling, YarnScaling):
      raise ValueError(
        'rope_scaling must keep magnitudes with local_rope_theta, got '
        f'{self.rope_scaling}'
      )

  @property
  def distinct_frequencies(
    self,
  ) -> tuple[Float[np.ndarray, 'F pairs'], Int[np.ndarray, ' L']]:
    """The different rows of `frequencies`, and the index of each layer's."""
    distinct, indices = np.unique(self.frequencies, axis=0, return_inverse=True)
    return distinct, indices.reshape(-1)

  @property
  def frequencies(self) -> Float[np.ndarray, 'L pairs']:
    """Rotary frequencies of every layer, in radians per position."""
    unlimited = base_frequencies(self.rope_theta, self.head_dim)
    if self.rope_scaling is not None:
      unlimited = self.rope_scaling(unlimited, self.rope_theta)
    local = unlimited
    if self.local_rope_theta is not None:
      local = base_frequencies(self.local_rope_theta, self.head_dim)
    windows = self.windows or (0,) * self.num_layers
    return np.stack([local if window else unlimited for window in windows])

  @property
  def rope_magnitude(self) -> float:
    """Factor that rotated queries and keys are multiplied by."""
    return 1.0 if self.rope_scaling is None else self.rope_scaling.magnitude

  @property
  def stats_dtype(self) -> jnp.dtype:
    """Dtype of softmax, norms and logits: float32 or wider."""
    return jnp.promote_types(self.dtype, jnp.float32)


def _dtype_name(field: str, dtype: DTypeLike) -> str:
  """Name of a dtype of a config, checked."""
  try:
    name = jnp.dtype(dtype).name
  except TypeError:
    name = None
  if name not in _DTYPES:
    raise ValueError(f'{field} must be one of {_DTYPES}, got {dtype!r}')
  return name


def tiny(vocab_size: int) -> ModelConfig:
  """Configuration for tests: two layers, width 32.

  >>> tiny(16).num_layers
  2
  """
  return ModelConfig(
    vocab_size=vocab_size,
    num_layers=2,
    model_dim=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    hidden_dim=64,
  )


def countdown(vocab_size: int) -> ModelConfig:
  """Configuration with a million parameters: learns Countdown in minutes on CPU.

  >>> countdown(64).model_dim
  128
  """
  return ModelConfig(
    vocab_size=vocab_size,
    num_layers=5,
    model_dim=128,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    hidden_dim=344,
  )
