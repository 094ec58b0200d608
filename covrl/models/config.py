# SPDX-License-Identifier: Apache-2.0
"""The shape of a decoder-only transformer, in plain numbers and strings."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from covrl.models.lora import Lora
from covrl.models.remat import REMAT
from covrl.models.rope import RopeScaling, YarnScaling, plain_frequencies

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
_DTYPES = ('float64', 'float32', 'bfloat16', 'float16')
_ACTIVATIONS = ('silu', 'gelu_tanh')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experts:
  """Several feed-forward layers in place of one, some of them for each token.

  Attributes:
    count: how many there are.
    per_token: how many a token is sent to.
    normalised: whether what these few count for is divided by its sum.

  Raises:
    ValueError: if a token would be sent to none, or to more than there are.
  """

  count: int
  per_token: int
  normalised: bool = True

  def __post_init__(self) -> None:
    if not 1 <= self.per_token <= self.count:
      raise ValueError(
        f'experts of a token must be 1 to {self.count}, as many as there are,'
        f' got {self.per_token}'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """Everything that decides a transformer's parameters and its arithmetic.

  Hashable, so that a jitted function may take it as a static argument.

  Attributes:
    vocab_size: tokens the policy can read and write.
    num_layers: blocks of attention and feed-forward.
    model_dim: width of the residual stream.
    num_heads: query heads.
    num_kv_heads: key and value heads, each shared by
      `num_heads / num_kv_heads` query heads.
    head_dim: width of one head; even, since rotations act on pairs.
    hidden_dim: width of the gated feed-forward layer, of each expert's if
      there are experts.
    rope_theta: base of the rotary wavelengths.
    rope_scaling: how rotations slow down for long texts; `None` for not.
    windows: tokens each layer looks back at, its own included, one number per
      layer; 0 is all of them, and so is leaving the tuple empty.
    local_rope_theta: base of the wavelengths of layers with a window, which
      are then not scaled; `None` treats them like the others.
    qkv_bias: whether queries, keys and values have a bias.
    qk_norm: whether each head's queries and keys are normed.
    attention_scale: of the products of queries and keys; h^−1/2 if `None`.
    attention_soft_cap: bound of these products, as tanh keeps it.
    logit_soft_cap: bound of the logits, as tanh keeps it.
    activation: of the gate, `'silu'` or `'gelu_tanh'`.
    norm_eps: added to the mean square before its root is taken.
    unit_offset: whether norms multiply by 1 + scale rather than by scale.
    post_norms: whether a block's two results are normed as well.
    scaled_embeddings: whether embeddings are multiplied by √model_dim.
    tied_embeddings: whether the unembedding is the embedding, transposed.
    experts: a mixture in place of the feed-forward layers; `None` for not.
    lora: adapters, which alone are trained; `None` trains all parameters.
    dtype: of activations and matrix products; attention's softmax, norms and
      logits are float32 at least.
    param_dtype: of the stored parameters.
    remat: what the backward pass recomputes instead of keeping it; see
      `covrl.models.remat`.

  Raises:
    ValueError: if a number is out of range or two of them contradict.

  >>> tiny(16).num_heads // tiny(16).num_kv_heads
  2
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
  activation: str = 'silu'
  norm_eps: float = 1e-6
  unit_offset: bool = False
  post_norms: bool = False
  scaled_embeddings: bool = False
  tied_embeddings: bool = True
  experts: Experts | None = None
  lora: Lora | None = None
  dtype: str = 'float32'
  param_dtype: str = 'float32'
  remat: str = 'nothing'

  def __post_init__(self) -> None:
    for name in _SIZES:
      if getattr(self, name) < 1:
        raise ValueError(
          f'{name} must be at least 1, got {getattr(self, name)}'
        )
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
      if value is not None and not value > 0:
        raise ValueError(f'{name} must be positive, got {value}')
    if self.activation not in _ACTIVATIONS:
      raise ValueError(
        f'activation must be one of {_ACTIVATIONS}, got {self.activation!r}'
      )
    self._check_windows()
    if self.remat not in REMAT:
      raise ValueError(
        f'remat must be one of {tuple(REMAT)}, got {self.remat!r}'
      )
    if self.lora is not None and self.experts is not None:
      routed = {'gate', 'up', 'down'} & set(self.lora.targets)
      if routed:
        raise ValueError(
          'adapters of a mixture of experts may be those of query, key, value'
          f' and output only, got {sorted(routed)}'
        )
    for name in ('dtype', 'param_dtype'):
      if getattr(self, name) not in _DTYPES:
        raise ValueError(
          f'{name} must be one of {_DTYPES}, got {getattr(self, name)!r}'
        )

  def _check_windows(self) -> None:
    """Refuses windows of other layers than there are, or that see nothing."""
    if self.windows and len(self.windows) != self.num_layers:
      raise ValueError(
        f'windows must be one number for each of {self.num_layers} layers, '
        f'got {len(self.windows)}'
      )
    if min(self.windows, default=0) < 0:
      raise ValueError(f'windows must be at least 0, got {min(self.windows)}')
    if self.local_rope_theta and isinstance(self.rope_scaling, YarnScaling):
      raise ValueError(
        'local_rope_theta needs a rope_scaling that keeps magnitudes, got '
        f'{self.rope_scaling}'
      )

  @property
  def frequencies(self) -> Float[np.ndarray, 'L pairs']:
    """Rotary frequencies of every layer, in radians per position."""
    everywhere = plain_frequencies(self.rope_theta, self.head_dim)
    if self.rope_scaling is not None:
      everywhere = self.rope_scaling(everywhere, self.rope_theta)
    local = everywhere
    if self.local_rope_theta is not None:
      local = plain_frequencies(self.local_rope_theta, self.head_dim)
    windows = self.windows or (0,) * self.num_layers
    return np.stack([local if window else everywhere for window in windows])

  @property
  def rope_magnitude(self) -> float:
    """What rotated queries and keys are multiplied by."""
    return 1.0 if self.rope_scaling is None else self.rope_scaling.magnitude

  @property
  def stats_dtype(self) -> jnp.dtype:
    """What softmax, norms and logits are computed in: float32 or wider."""
    return jnp.promote_types(self.dtype, jnp.float32)


def tiny(vocab_size: int) -> ModelConfig:
  """A transformer for tests: two layers, width 32.

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
  """About a million parameters: learns Countdown within minutes on a CPU.

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
