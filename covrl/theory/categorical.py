# SPDX-License-Identifier: Apache-2.0
"""Categorical distributions in NumPy: softmax, entropy, covariance, KL.

All functions work along the last axis and keep the dtype of their inputs.
They refuse, with `TypeError` or `ValueError`, lists, masked arrays, logits
without a softmax, probabilities that are negative or do not sum to 1, and other
numbers of actions.
Claims that need no automatic differentiation use them to check thousands of
policies at once without compiling.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from covrl.array_checks import check_array, check_integer
from covrl.theory.argument_checks import (
  check_actions,
  check_finite,
  check_logits,
  check_probabilities,
)

Array = np.ndarray


def log_softmax(logits: Float[Array, '*B K']) -> Float[Array, '*B K']:
  """log π, without overflow."""
  check_logits('logits', logits)
  shifted = logits - logits.max(-1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def softmax(logits: Float[Array, '*B K']) -> Float[Array, '*B K']:
  """π, the probabilities."""
  return np.exp(log_softmax(logits))


def entropy(pi: Float[Array, '*B K']) -> Float[Array, '*B']:
  """H = −Σ π log π in nats, with 0 log 0 = 0.

  >>> float(entropy(np.array([1.0, 0.0])))
  0.0
  """
  check_probabilities('pi', pi)
  terms = pi * np.log(np.where(pi > 0, pi, 1))
  return np.asarray(0.0 - terms.sum(-1))


def centred_logprobs(pi: Float[Array, '*B K']) -> Float[Array, '*B K']:
  """f = log π − E log π = log π + H."""
  h = entropy(pi)
  return np.log(np.where(pi > 0, pi, 1)) + h[..., None]


def expectation(
  pi: Float[Array, '*#B K'], x: Float[Array, '*#B K']
) -> Float[Array, '...']:
  """E_π x."""
  check_probabilities('pi', pi)
  check_actions(pi, x=x)
  return np.asarray((pi * x).sum(-1))


def centred(
  pi: Float[Array, '*#B K'], x: Float[Array, '*#B K']
) -> Float[Array, '... K']:
  """x − E_π x."""
  return x - expectation(pi, x)[..., None]


def covariance(
  pi: Float[Array, '*#B K'], x: Float[Array, '*#B K'], y: Float[Array, '*#B K']
) -> Float[Array, '...']:
  """Cov_π(x, y)."""
  return expectation(pi, centred(pi, x) * centred(pi, y))


def weighted_covariance(
  weights: Float[Array, ' n'], x: Float[Array, 'n K']
) -> Float[Array, 'K K']:
  """Covariance matrix of the rows of x, drawn with the given probabilities."""
  check_probabilities('weights', weights, np.shape(x)[:1])
  deviation = x - weights @ x
  return (weights[:, None] * deviation).T @ deviation


def kl(p: Float[Array, '*B K'], q: Float[Array, '*B K']) -> Float[Array, '*B']:
  """KL(p ‖ q) in nats; ∞ where p is positive and q is 0."""
  check_probabilities('p', p)
  check_probabilities('q', q, p.shape)
  safe = np.where(p > 0, p, 1)
  terms = p * (np.log(safe) - np.log(np.where(p > 0, q, 1)))
  return np.asarray(terms.sum(-1))


def entropy_derivative(
  logits: Float[np.ndarray, '*#B K'], direction: Float[np.ndarray, '*#B K']
) -> Float[np.ndarray, '...']:
  """dH/dη of softmax(logits + η direction) at η = 0, by central differences."""
  check_actions(logits, direction=direction)
  h = 1e-5
  up, down = (entropy(softmax(logits + s * direction)) for s in (h, -h))
  return (up - down) / (2 * h)


def random_logits(
  rng: np.random.Generator,
  trials: int,
  actions: int,
  scales: Sequence[float] = (0.1, 1.0, 10.0),
) -> Float[Array, 'trials K']:
  """Normal logits, for policies from nearly uniform to nearly deterministic.

  Args:
    rng: random number generator.
    trials: number of policies.
    actions: number of actions K.
    scales: standard deviations of at least 0, used in turn.
  """
  check_integer('trials', trials, 1)
  check_integer('actions', actions, 1)
  check_finite('scales', np.asarray(scales), 'n')
  if not len(scales) or min(scales) < 0:
    raise ValueError(
      f'scales must be numbers of at least 0, got {tuple(scales)}'
    )
  scale = np.resize(np.asarray(scales, float), trials)[:, None]
  return scale * rng.normal(size=(trials, actions))


def power_law_exponent(x: Float[Array, ' n'], y: Float[Array, ' n']) -> float:
  """The exponent p of y ∝ x^p, by least squares in logarithms.

  NaN if some y is not positive or not finite; a `Check` of NaN does not pass.

  Args:
    x: two or more different positive numbers.
    y: as many numbers as x.

  Raises:
    TypeError: x or y is not an array of numbers.
    ValueError: x is not two or more different positive numbers, or y has another
      shape.

  >>> round(power_law_exponent(np.array([1.0, 10.0]), np.array([3.0, 300.0])), 6)
  2.0
  """
  check_finite('x', x, 'n')
  check_array('y', y, 'real', 'n', x.shape)
  if np.unique(x).size < 2 or min(x) <= 0:
    raise ValueError(
      f'x must be two or more different positive numbers, got {x.tolist()!r:.80}'
    )
  if not ((y > 0) & np.isfinite(y)).all():
    return float('nan')
  return float(np.polyfit(np.log(x), np.log(y), 1)[0])
