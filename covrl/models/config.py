# SPDX-License-Identifier: Apache-2.0
"""The shape of a decoder-only transformer, in plain numbers and strings."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

_SIZES = (
  'vocab_size',
  'num_layers',
  'model_dim',
  'num_heads',
  'num_kv_heads',
  'head_dim',
  'hidden_dim',
)
_DTYPES = ('float64', 'float32', 'bfloat16', 'float16')


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
    hidden_dim: width of the gated feed-forward layer.
    rope_theta: base of the rotary wavelengths.
    norm_eps: added to the mean square before its root is taken.
    tied_embeddings: whether the unembedding is the embedding, transposed.
    dtype: of activations and matrix products; attention's softmax, norms and
      logits are float32 at least.
    param_dtype: of the stored parameters.
    remat: whether the backward pass recomputes each block instead of keeping
      its activations.

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
  norm_eps: float = 1e-6
  tied_embeddings: bool = True
  dtype: str = 'float32'
  param_dtype: str = 'float32'
  remat: bool = False

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
    for name in ('rope_theta', 'norm_eps'):
      if not getattr(self, name) > 0:
        raise ValueError(f'{name} must be positive, got {getattr(self, name)}')
    for name in ('dtype', 'param_dtype'):
      if getattr(self, name) not in _DTYPES:
        raise ValueError(
          f'{name} must be one of {_DTYPES}, got {getattr(self, name)!r}'
        )

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
