# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters (LoRA): options, and splitting and merging of parameters.

The adapter of parameter `NAME` is its sibling `NAME_adapter`, so that trees of
parameters can be split and joined by names alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from covrl.array_checks import check_integer, check_number

TARGETS = ('query', 'key', 'value', 'output', 'gate', 'up', 'down')

_SUFFIX = '_adapter'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
  """Options of the adapters.

      y = x W + scale · (x A) B,    scale = alpha / rank

  Attributes:
    rank: number of columns of A and rows of B.
    alpha: numerator of the scale.
    targets: names of the adapted matrices of each layer, among `TARGETS`.
    rank_stabilised: whether the scale is alpha / √rank instead.

  Raises:
    TypeError: if the rank is not an integer, or alpha not a number.
    ValueError: if a target is unknown or repeated, or a number is not positive.

  References:
    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models",
    arXiv:2106.09685, (3). Kalajdzievski, "A Rank Stabilization Scaling Factor
    for Fine-Tuning with LoRA", arXiv:2312.03732 (`rank_stabilised`).

  >>> Lora(rank=8, alpha=16.0).scale
  2.0
  """

  rank: int
  alpha: float
  targets: tuple[str, ...] = TARGETS
  rank_stabilised: bool = False

  def __post_init__(self) -> None:
    check_integer('the rank of adapters', self.rank, 1)
    check_number('the alpha of adapters', self.alpha, 0, is_open=True)
    unknown = [name for name in self.targets if name not in TARGETS]
    is_tuple = isinstance(self.targets, tuple)
    repeats = len(set(self.targets)) < len(self.targets)
    if unknown or repeats or not is_tuple or not self.targets:
      raise ValueError(
        f'the targets of adapters must be a tuple of some of {TARGETS}, each'
        f' once, got {self.targets}'
      )

  @property
  def scale(self) -> float:
    """Factor of the product of an adapter's matrices."""
    rank = math.sqrt(self.rank) if self.rank_stabilised else self.rank
    return self.alpha / rank


def split_adapters(params: Mapping[str, PyTree]) -> tuple[PyTree, PyTree]:
  """Splits parameters into those without adapters and the adapters.

  Both keep the nesting of the tree.

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
  """Merges adapters into the matrices that they are added to.

      W ← W + scale · A B

  computed in float32 or wider, one layer at a time, and rounded once.

  Args:
    params: parameters with adapters; arrays of layers are stacked.
    lora: options of the adapters.

  Returns:
    Parameters without adapters that compute the same.
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
