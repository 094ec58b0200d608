# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters (LoRA): options, and splitting and merging of parameters.

The adapter of parameter `NAME` is its sibling `NAME_adapter`, so that trees of
parameters can be split and joined by names alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
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


def merge_adapters(
  params: Mapping[str, PyTree], lora: Lora, dtype: DTypeLike | None = None
) -> PyTree:
  """Merges adapters into the matrices that they are added to.

      W ← W + scale · A B

  computed in float32 or wider, one layer at a time, and rounded once.

  Args:
    params: parameters with adapters; arrays of layers are stacked.
    lora: options of the adapters.
    dtype: dtype of all returned parameters; that of each unless given.

  Returns:
    Parameters without adapters that compute the same, but for rounding; see
    `lost_change`.
  """

  def merge(
    layer: tuple[Float[Array, '...'], Float[Array, '...'], Float[Array, '...']],
  ) -> Float[Array, '...']:
    weight, a, b = layer
    change = lora.scale * jnp.tensordot(a, b, axes=1)
    merged = weight.astype(change.dtype) + change
    return merged.astype(dtype or weight.dtype)

  merged: dict[str, PyTree] = {}
  for name, value in params.items():
    adapter = params.get(f'{name}{_SUFFIX}')
    if adapter is not None:
      merged[name] = jax.lax.map(merge, (value, adapter['a'], adapter['b']))
    elif isinstance(value, Mapping):
      if not name.endswith(_SUFFIX):
        merged[name] = merge_adapters(value, lora, dtype)
    else:
      merged[name] = value if dtype is None else value.astype(dtype)
  return merged


def lost_change(
  params: Mapping[str, PyTree], lora: Lora, dtype: DTypeLike | None = None
) -> float:
  """Share of the adapters' change that is rounded away where they are merged.

      1 − ⟨kept, change⟩ / ⟨change, change⟩,
      change = scale · A B,    kept = round(W + change) − round(W)

  over all adapted matrices, of which one at a time is merged. Weights of bfloat16
  lose what is less than half the distance of two of its numbers, mostly 1/512 of a
  weight.

  Args:
    params: parameters with adapters; arrays of layers are stacked.
    lora: options of the adapters.
    dtype: dtype of the merged weights; their own unless given.

  Returns:
    The share, 0 if the adapters change nothing.

  >>> layer = {'up': jnp.ones((1, 2, 2), jnp.bfloat16)}
  >>> layer['up_adapter'] = {'a': jnp.ones((1, 2, 1)), 'b': jnp.ones((1, 1, 2))}
  >>> [lost_change(layer, Lora(rank=1, alpha=alpha)) for alpha in (1.0, 0.001)]
  [0.0, 1.0]
  """

  @jax.jit
  def merged(
    weights: Float[Array, '...'], adapter: Mapping[str, Float[Array, '...']]
  ) -> Float[Array, '...']:
    return merge_adapters({'w': weights, f'w{_SUFFIX}': adapter}, lora, dtype)[
      'w'
    ]

  @jax.jit
  def products(
    before: Float[Array, '...'],
    after: Float[Array, '...'],
    adapter: Mapping[str, Float[Array, '...']],
  ) -> Float[Array, ' 2']:
    def of_layer(layer: tuple[Float[Array, '...'], ...]) -> Float[Array, ' 2']:
      before, after, a, b = layer
      change = lora.scale * jnp.tensordot(a, b, axes=1)
      kept = after.astype(change.dtype) - before.astype(change.dtype)
      return jnp.stack([jnp.sum(kept * change), jnp.sum(change * change)])

    layers = before, after, adapter['a'], adapter['b']
    return jnp.sum(jax.lax.map(of_layer, layers), axis=0)

  def totals(tree: Mapping[str, PyTree]) -> Iterator[Float[Array, ' 2']]:
    for name, value in tree.items():
      adapter = tree.get(f'{name}{_SUFFIX}')
      if adapter is not None:
        # In programs of their own, since XLA leaves out roundings within one.
        before = value.astype(dtype or value.dtype)
        yield products(before, merged(value, adapter), adapter)
      elif isinstance(value, Mapping) and not name.endswith(_SUFFIX):
        yield from totals(value)

  kept, change = 0.0, 0.0
  for products_of_matrix in jax.device_get(list(totals(params))):
    kept += float(products_of_matrix[0])
    change += float(products_of_matrix[1])
  return 1 - kept / change if change else 0.0
