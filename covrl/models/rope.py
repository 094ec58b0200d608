# SPDX-License-Identifier: Apache-2.0
"""Rotary position embeddings (RoPE) and their scaling to long contexts.

A model trained on short contexts reads longer ones with lower rotary
frequencies. Each of the three scalings is a function of the base frequencies,
and part of a model's configuration.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from covrl.array_checks import check_integer, check_number


def base_frequencies(
  theta: float, head_dim: int
) -> Float[np.ndarray, ' pairs']:
  """Rotary frequencies: radians per position, for each pair of features.

      θ^(−2i/h),   i < h/2

  Args:
    theta: base of the wavelengths.
    head_dim: h, the width of a head; even.

  >>> base_frequencies(10000.0, 4).tolist()
  [1.0, 0.01]
  """
  half = head_dim // 2
  return theta ** (-np.arange(half) / half)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearScaling:
  """Linear scaling: divides all frequencies by `factor`.

  Attributes:
    factor: ratio of the new to the original context length.

  Raises:
    ValueError: if the factor is not finite and positive.

  References:
    Chen et al., "Extending Context Window of Large Language Models via
    Positional Interpolation", arXiv:2306.15595, (4).
  """

  factor: float
  magnitude = 1.0

  def __post_init__(self) -> None:
    check_number('factor', self.factor, 0, is_open=True)

  def __call__(
    self, frequencies: Float[np.ndarray, ' pairs'], theta: float
  ) -> Float[np.ndarray, ' pairs']:
    """Scales the frequencies."""
    del theta
    return frequencies / self.factor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
  """Llama 3 scaling: divides low frequencies by `factor`, keeps high ones.

  With r = original_length / wavelength, the number of turns of a pair within
  the original context,

      s = clip((r − low) / (high − low), 0, 1)
      f ← s · f + (1 − s) · f / factor

  Attributes:
    factor: ratio of the new to the original context length.
    original_length: context length of pre-training, in tokens.
    low: pairs with fewer turns are divided by `factor`.
    high: pairs with more turns are not scaled.

  Raises:
    ValueError: if a number is not positive, or `low` is not below `high`.

  References:
    Llama Team, "The Llama 3 Herd of Models", arXiv:2407.21783; the
    formula is that of the released code.
  """

  factor: float
  original_length: int
  low: float = 1.0
  high: float = 4.0
  magnitude = 1.0

  def __post_init__(self) -> None:
    check_number('factor', self.factor, 0, is_open=True)
    check_integer('original_length', self.original_length, 1)
    _check_order('low', self.low, 'high', self.high)

  def __call__(
    self, frequencies: Float[np.ndarray, ' pairs'], theta: float
  ) -> Float[np.ndarray, ' pairs']:
    """Scales the frequencies."""
    del theta
    turns = self.original_length * frequencies / (2 * np.pi)
    unscaled_share = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
    return (
      unscaled_share * frequencies
      + (1 - unscaled_share) * frequencies / self.factor
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class YarnScaling:
  """YaRN scaling: like `Llama3Scaling`, with a ramp over indices of pairs.

      i(r) = h log(original_length / (2π r)) / (2 log θ)

  is the pair that makes r turns. Pairs before i(fast) are not scaled, pairs
  after i(slow) are divided by `factor`, and queries and keys are multiplied by
  `magnitude`, which sharpens attention.

  Attributes:
    factor: ratio of the new to the original context length.
    original_length: context length of pre-training, in tokens.
    fast: pairs with more turns are not scaled.
    slow: pairs with fewer turns are divided by `factor`.
    attention_factor: the magnitude; 0.1 log(factor) + 1 if `None`.
    rounds_ramp: whether the ends of the ramp are rounded outwards to whole pairs.

  Raises:
    ValueError: if a number is not positive, or `slow` is not below `fast`.

  References:
    Peng et al., "YaRN: Efficient Context Window Extension of Large Language
    Models", arXiv:2309.00071, definitions 2 and 3 and (22).
  """

  factor: float
  original_length: int
  fast: float = 32.0
  slow: float = 1.0
  attention_factor: float | None = None
  rounds_ramp: bool = True

  def __post_init__(self) -> None:
    check_number('factor', self.factor, 0, is_open=True)
    check_integer('original_length', self.original_length, 1)
    _check_order('slow', self.slow, 'fast', self.fast)
    if self.attention_factor is not None:
      check_number('attention_factor', self.attention_factor, 0, is_open=True)

  @property
  def magnitude(self) -> float:
    """Factor that rotated queries and keys are multiplied by."""
    if self.attention_factor is not None:
      return self.attention_factor
    return 1.0 if self.factor <= 1 else 0.1 * math.log(self.factor) + 1.0

  def __call__(
    self, frequencies: Float[np.ndarray, ' pairs'], theta: float
  ) -> Float[np.ndarray, ' pairs']:
    """Scales the frequencies."""
    half = len(frequencies)
    first, last = (
      self._pair(self.fast, theta, half),
      self._pair(self.slow, theta, half),
    )
    if self.rounds_ramp:
      first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * half - 1)
    # A ramp of length 0 is a step.
    width = max(last - first, 1e-3)
    scaled_share = np.clip((np.arange(half) - first) / width, 0, 1)
    return (
      1 - scaled_share
    ) * frequencies + scaled_share * frequencies / self.factor

  def _pair(self, turns: float, theta: float, half: int) -> float:
    """Fractional index of the pair that makes this number of turns."""
    wavelength = self.original_length / turns
    return half * math.log(wavelength / (2 * math.pi)) / math.log(theta)


def _check_order(
  lower: str, lower_value: float, upper: str, upper_value: float
) -> None:
  """Refuses two numbers of turns that are not positive and in order."""
  check_number(lower, lower_value, 0, is_open=True)
  check_number(upper, upper_value, 0, is_open=True)
  if not lower_value < upper_value:
    raise ValueError(
      f'{lower} must be below {upper}, got {lower_value:g} and {upper_value:g}'
    )


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling


class Rotation(NamedTuple):
  """Rotation of each token's pairs of features, the same for all heads.

  Attributes:
    cos: cosine of each pair's angle, times the magnitude.
    sin: sine of the same angle, times the magnitude.
  """

  cos: Float[Array, '*F B T 1 pairs']
  sin: Float[Array, '*F B T 1 pairs']

  @classmethod
  def of(
    cls,
    positions: Int[Array, 'B T'],
    frequencies: Float[np.ndarray, '*F pairs'],
    *,
    magnitude: float = 1.0,
    dtype: DTypeLike = jnp.float32,
  ) -> Rotation:
    """Rotation by angles proportional to the position.

        angle_i = position · frequency_i

    Args:
      positions: index of each token within its sequence.
      frequencies: radians per position of each pair; with a leading axis, as
        many rotations.
      magnitude: factor that rotated features are multiplied by.
      dtype: dtype of angles and results.
    """
    by_pair = jnp.asarray(frequencies, dtype)[..., None, None, None, :]
    angles = positions[..., None, None].astype(dtype) * by_pair
    return cls(magnitude * jnp.cos(angles), magnitude * jnp.sin(angles))


def rotate(
  x: Float[Array, 'B T H h'], rotation: Rotation
) -> Float[Array, 'B T H h']:
  """Rotates each pair of features, (x_i, x_{i+h/2}).

  With angles proportional to the position, ⟨rotated query, rotated key⟩ depends
  on the distance alone.

  Args:
    x: queries or keys.
    rotation: rotation of each token.

  References:
    Su et al., "RoFormer: Enhanced Transformer with Rotary Position
    Embedding", arXiv:2104.09864, (34); features paired by halves.
  """
  half, (cos, sin) = x.shape[-1] // 2, rotation
  first, second = x[..., :half], x[..., half:]
  rotated = (first * cos - second * sin, second * cos + first * sin)
  return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
