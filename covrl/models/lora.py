# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters: what they are, and how their parameters are kept apart.

An adapter stands beside the matrix that it adds to, under the same name with
`_adapter` after it, so that a tree of parameters can be taken apart and put
together by its names alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

TARGETS = ('query', 'key', 'value', 'output', 'gate', 'up', 'down')

_SUFFIX = '_adapter'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
  """Which matrices have an adapter, and how large it is.

      y = x W + scale · (x A) B,    scale = alpha / rank

  Attributes:
    rank: columns of A, rows of B.
    alpha: of the scale.
    targets: names of the matrices, of each layer, among `TARGETS`.
    rank_stabilised: whether the scale is alpha / √rank instead.

  Raises:
    ValueError: if there is no such matrix, or a number is not positive.

  References:
    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models",
    arXiv:2106.09685, (3). Kalajdzievski, "A Rank Stabilization Scaling Factor
    for Fine-Tuning with LoRA", arXiv:2312.03732, for the root.

  >>> Lora(rank=8, alpha=16.0).scale
  2.0
  """

  rank: int
  alpha: float
  targets: tuple[str, ...] = TARGETS
  rank_stabilised: bool = False

  def __post_init__(self) -> None:
    if self.rank < 1:
      raise ValueError(
        f'the rank of adapters must be at least 1, got {self.rank}'
      )
    if not self.alpha > 0:
      raise ValueError(
        f'the alpha of adapters must be positive, got {self.alpha}'
      )
    unknown = [name for name in self.targets if name not in TARGETS]
    if unknown or not self.targets:
      raise ValueError(
        f'the targets of adapters must be some of {TARGETS}, got {self.targets}'
      )

  @property
  def scale(self) -> float:
    """What the product of an adapter's matrices is multiplied by."""
    rank = math.sqrt(self.rank) if self.rank_stabilised else self.rank
    return self.alpha / rank


def split_adapters(params: Mapping[str, PyTree]) -> tuple[PyTree, PyTree]:
  """Parameters without adapters, and the adapters, both nested as they were.

  >>> split_adapters({'mlp': {'up': 1, 'up_adapter': {'a': 2, 'b': 3}}})
  ({'mlp': {'up': 1}}, {'mlp': {'up_adapter': {'a': 2, 'b': 3}}})
  """
  base: dict[str, PyTree] = {}
  adapters: dict[str, PyTree] = {}
  for name, value in params.items():
    if name.endswith(_SUFFIX):
      adapters[name] = value
    elif isinstance(value, Mapping):
      base[name], inner = split_adapters(value)
      if inner:
        adapters[name] = inner
    else:
      base[name] = value
  return base, adapters


def join_adapters(
  base: Mapping[str, PyTree], adapters: Mapping[str, PyTree]
) -> PyTree:
  """Inverse of `split_adapters`; no array is copied."""
  joined = dict(base)
  for name, value in adapters.items():
    joined[name] = join_adapters(base[name], value) if name in base else value
  return joined


def merge_adapters(params: Mapping[str, PyTree], lora: Lora) -> PyTree:
  """Parameters without adapters that compute the same.

      W ← W + scale · A B

  in float32 or wider, a layer at a time, rounded once.

  Args:
    params: the layers' arrays stacked.
    lora: what the adapters are.
  """

  def merge(
    layer: tuple[Float[Array, '...'], Float[Array, '...'], Float[Array, '...']],
  ) -> Float[Array, '...']:
    weight, a, b = layer
    change = lora.scale * jnp.tensordot(a, b, axes=1)
    return (weight.astype(change.dtype) + change).astype(weight.dtype)

  merged: dict[str, PyTree] = {}
  for name, value in params.items():
    adapter = params.get(f'{name}{_SUFFIX}')
    if adapter is not None:
      merged[name] = jax.lax.map(merge, (value, adapter['a'], adapter['b']))
    elif isinstance(value, Mapping):
      if not name.endswith(_SUFFIX):
        merged[name] = merge_adapters(value, lora)
    else:
      merged[name] = value
  return merged
