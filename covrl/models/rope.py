# SPDX-License-Identifier: Apache-2.0
"""Rotary positions: how fast each pair of features turns, and the turning.

A model trained on short texts reads longer ones by turning more slowly. Three
rules for that are in use; each is a value that says how the plain frequencies
change, and is part of a model's configuration.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def plain_frequencies(
  theta: float, head_dim: int
) -> Float[np.ndarray, ' pairs']:
  """Angle per position of each pair of features, in radians.

      θ^(−2i/h),   i < h/2

  Args:
    theta: base of the wavelengths.
    head_dim: h, even.

  >>> plain_frequencies(10000.0, 4).tolist()
  [1.0, 0.01]
  """
  half = head_dim // 2
  return theta ** (-np.arange(half) / half)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearScaling:
  """Every pair turns `factor` times more slowly.

  Attributes:
    factor: how many times longer the texts are.

  References:
    Chen et al., "Extending Context Window of Large Language Models via
    Positional Interpolation", arXiv:2306.15595, (4).
  """

  factor: float
  magnitude = 1.0

  def __call__(
    self, frequencies: Float[np.ndarray, ' pairs'], theta: float
  ) -> Float[np.ndarray, ' pairs']:
    """The slower frequencies."""
    del theta
    return frequencies / self.factor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
  """Pairs that turn slowly turn `factor` times more slowly; fast ones do not.

  With r = original_length / wavelength, the number of turns a pair made in the
  longest text of pre-training,

      s = clip((r − low) / (high − low), 0, 1)
      f ← s · f + (1 − s) · f / factor

  Attributes:
    factor: how many times longer the texts are.
    original_length: tokens of the longest text of pre-training.
    low: fewer turns are slowed down wholly.
    high: more turns are left alone.

  References:
    Llama Team, "The Llama 3 Herd of Models", arXiv:2407.21783; the rule is
    that of the released code.
  """

  factor: float
  original_length: int
  low: float = 1.0
  high: float = 4.0
  magnitude = 1.0

  def __call__(
    self, frequencies: Float[np.ndarray, ' pairs'], theta: float
  ) -> Float[np.ndarray, ' pairs']:
    """The slower frequencies."""
    del theta
    turns = self.original_length * frequencies / (2 * np.pi)
    kept = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
    return kept * frequencies + (1 - kept) * frequencies / self.factor


@dataclasses.dataclass(frozen=True, kw_only=True)
class YarnScaling:
  """As `Llama3Scaling`, the ramp linear in the index of the pair.

      i(r) = h log(original_length / (2π r)) / (2 log θ)

  is the pair that makes r turns; pairs before i(fast) are left alone, pairs
  after i(slow) are slowed down wholly, and both features of every query and
  key grow by `magnitude`, which sharpens attention.

  Attributes:
    factor: how many times longer the texts are.
    original_length: tokens of the longest text of pre-training.
    fast: more turns are left alone.
    slow: fewer turns are slowed down wholly.
    attention_factor: the magnitude; 0.1 log(factor) + 1 unless given.
    whole: whether the ends of the ramp are rounded outwards to whole pairs.

  References:
    Peng et al., "YaRN: Efficient Context Window Extension of Large Language
    Models", arXiv:2309.00071, definitions 2 and 3 and (22).
  """

  factor: float
  original_length: int
  fast: float = 32.0
  slow: float = 1.0
  attention_factor: float | None = None
  whole: bool = True

  @property
  def magnitude(self) -> float:
    """What the turned features are multiplied by."""
    if self.attention_factor is not None:
      return self.attention_factor
    return 1.0 if self.factor <= 1 else 0.1 * math.log(self.factor) + 1.0

  def __call__(
    self, frequencies: Float[np.ndarray, ' pairs'], theta: float
  ) -> Float[np.ndarray, ' pairs']:
    """The slower frequencies."""
    half = len(frequencies)
    first, last = (
      self._pair(self.fast, theta, half),
      self._pair(self.slow, theta, half),
    )
    if self.whole:
      first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * half - 1)
    # A ramp without length is a step.
    width = max(last - first, 1e-3)
    slowed = np.clip((np.arange(half) - first) / width, 0, 1)
    return (1 - slowed) * frequencies + slowed * frequencies / self.factor

  def _pair(self, turns: float, theta: float, half: int) -> float:
    """The index, not always whole, of the pair that makes so many turns."""
    wavelength = self.original_length / turns
    return half * math.log(wavelength / (2 * math.pi)) / math.log(theta)


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling


def rotate(
  x: Float[Array, 'B T H h'],
  positions: Int[Array, 'B T'],
  frequencies: Float[Array, ' pairs'],
  *,
  magnitude: float = 1.0,
) -> Float[Array, 'B T H h']:
  """Turns each pair of features by an angle proportional to the position.

      (x_i, x_{i+h/2}) turned by position · frequency_i, times magnitude

  so that ⟨rotated query, rotated key⟩ depends on the distance alone.

  Args:
    x: queries or keys.
    positions: place of each token within its sequence.
    frequencies: radians per position of each of the h/2 pairs.
    magnitude: of the result, relative to `x`.

  References:
    Su et al., "RoFormer: Enhanced Transformer with Rotary Position
    Embedding", arXiv:2104.09864, (34); features paired by halves.
  """
  half = x.shape[-1] // 2
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  angles = positions[..., None, None].astype(dtype) * frequencies.astype(dtype)
  cos, sin = magnitude * jnp.cos(angles), magnitude * jnp.sin(angles)
  first, second = x[..., :half], x[..., half:]
  turned = (first * cos - second * sin, second * cos + first * sin)
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)
