# SPDX-License-Identifier: Apache-2.0
"""Invalid input of losses, advantages and weights is refused, and not broadcast."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import covrl
from covrl import TokenStats, advantages, losses
from covrl.objectives import token_rewards
from covrl.objectives.base import loss_inputs

pytestmark = pytest.mark.usefixtures('no_annotation_checks')

SHAPE = (4, 8)
STATS = TokenStats(logprobs=-jnp.ones(SHAPE), entropy=jnp.ones(SHAPE))
CONTEXT: Any = {
  'advantages': jnp.ones(SHAPE),
  'old_logprobs': -jnp.ones(SHAPE),
  'weights': jnp.ones(SHAPE) / 32,
}
LOSSES = (
  'policy_gradient',
  'clipped_surrogate',
  'cispo',
  'sapo',
  'dppo',
  'gspo',
  'geo_mean',
  'vespo',
)


def unchecked(function: object) -> Any:
  """Returns a function without its types, for calls with invalid arguments."""
  return function


@pytest.mark.parametrize('name', LOSSES)
@pytest.mark.parametrize(
  ('entry', 'value', 'sentence'),
  [
    ('advantages', jnp.ones(4), r'\[B, T\] = \(4, 8\), got \(4,\)'),
    ('advantages', jnp.ones(8), r'\[B, T\] = \(4, 8\), got \(8,\)'),
    ('weights', jnp.ones((1, 8)), r'\[B, T\] = \(4, 8\), got \(1, 8\)'),
    ('old_logprobs', jnp.ones(()), r'\[B, T\] = \(4, 8\), got \(\)'),
    ('mask', jnp.ones(8, bool), r'\[B, T\] = \(4, 8\), got \(8,\)'),
    ('segment_ids', jnp.ones(8, int), r'\[B, T\] = \(4, 8\), got \(8,\)'),
    ('mask', jnp.ones(SHAPE), 'an array of bools, got float32'),
    ('weights', jnp.ones(SHAPE, bool), 'an array of numbers, got bool'),
    ('segment_ids', jnp.ones(SHAPE), 'an array of integers, got float32'),
  ],
)
def test_losses_refuse_arrays_of_another_shape_or_dtype(
  name, entry, value, sentence
):
  loss = getattr(losses, name)
  with pytest.raises(
    (TypeError, ValueError), match=f'{entry} must be {sentence}'
  ):
    loss(STATS, **CONTEXT | {entry: value})


def test_square_batches_do_not_broadcast():
  """A vector would fit both axes, as S = T."""
  stats = TokenStats(logprobs=-jnp.ones((4, 4)), entropy=jnp.ones((4, 4)))
  context = {name: value[:, :4] for name, value in CONTEXT.items()}
  with pytest.raises(
    ValueError, match=r'advantages must be \[B, T\] = \(4, 4\), got \(4,\)'
  ):
    jax.jit(losses.clipped_surrogate)(
      stats, **context | {'advantages': jnp.ones(4)}
    )


def test_losses_refuse_bare_logprobs():
  with pytest.raises(TypeError, match='stats of cispo must be a TokenStats'):
    unchecked(loss_inputs)(STATS.logprobs, CONTEXT, 'cispo')


@pytest.mark.parametrize(
  ('loss', 'sentence'),
  [
    (
      functools.partial(unchecked(losses.clipped_surrogate), low='0.2'),
      "low must be a number, got '0.2'",
    ),
    (
      functools.partial(losses.clipped_surrogate, high=np.nan),
      r'high must lie in \[0, inf\], got nan',
    ),
    (
      functools.partial(losses.clipped_surrogate, low=jnp.float32(1.5)),
      r'low must lie in \[0, 1\], got 1\.5',
    ),
    (
      functools.partial(losses.policy_gradient, max_log_ratio=-1.0),
      r'max_log_ratio must lie in \[0, inf\], got -1',
    ),
    (
      functools.partial(losses.sapo, negative_sharpness=0.0),
      'negative_sharpness must be positive, got 0',
    ),
    (
      functools.partial(losses.dppo, max_ratio=True),
      'max_ratio must be a number, got True',
    ),
  ],
)
def test_losses_refuse_invalid_options(loss, sentence):
  with pytest.raises((TypeError, ValueError), match=sentence):
    loss(STATS, **CONTEXT)


REWARDS, IDS = jnp.array([1.0, 0.0, 1.0, 0.0]), jnp.array([0, 0, 1, 1])
TOKENS, MASK = jnp.ones(SHAPE), jnp.ones(SHAPE, bool)
REFUSED = {
  'group_relative': [
    ((REWARDS[:3], IDS), {}, r'group_ids must be \[S\] = \(3,\), got \(4,\)'),
    ((TOKENS, IDS), {}, r'rewards must be \[S\], got \(4, 8\)'),
    ((REWARDS, REWARDS), {}, 'group_ids must be an array of integers'),
    (([1.0, 0.0], IDS[:2]), {}, 'rewards must be .* numbers, got a list'),
    (
      (REWARDS, IDS),
      {'eps': -1.0},
      'eps must be finite and at least 0, got -1',
    ),
  ],
  'leave_one_out': [
    ((REWARDS[:, None], IDS), {}, r'rewards must be \[S\], got \(4, 1\)'),
    ((REWARDS, IDS[:1]), {}, r'group_ids must be \[S\] = \(4,\), got \(1,\)'),
  ],
  'opo': [((REWARDS, IDS, IDS[:1]), {}, r'lengths must be \[S\] = \(4,\)')],
  'pass_at_k': [
    ((REWARDS, IDS), {'k': 1.5}, 'k must be an integer, got 1.5'),
    ((REWARDS, IDS), {'k': 2, 'threshold': np.nan}, 'threshold must be'),
  ],
  'unlikeliness': [
    ((REWARDS, REWARDS[:1], IDS), {}, r'logprobs must be \[S\] = \(4,\)'),
    ((REWARDS, REWARDS, IDS), {'coefficient': 2.0}, 'coefficient must lie'),
  ],
  'reinforce_plus_plus': [
    (
      (REWARDS, MASK),
      {},
      r'token_rewards must be \[S, T\] = \(4, 8\), got \(4,',
    ),
    ((TOKENS, MASK[0]), {}, r'mask must be \[S, T\], got \(8,\)'),
    ((TOKENS, MASK), {'discount': 1.1}, r'discount must lie in \[0, 1\]'),
  ],
  'reinforce_plus_plus_baseline': [
    ((REWARDS, IDS, MASK[:1]), {}, 'mask must have a row for each of the 4'),
  ],
  'remax': [
    ((TOKENS, REWARDS[:1], MASK), {}, r'baselines must be \[S\] = \(4,\)'),
    ((TOKENS, REWARDS, TOKENS), {}, 'mask must be an array of bools'),
  ],
  'gae': [
    ((TOKENS, TOKENS[0], MASK), {}, r'values must be \[S, T\] = \(4, 8\)'),
    ((TOKENS, TOKENS, MASK), {'trace_decay': -0.1}, 'trace_decay must lie'),
    (
      (TOKENS, TOKENS, MASK),
      {'trace_decay': jnp.array([0.5, 2.0, 1.0, 1.0])},
      r'trace_decay must lie in \[0, 1\] for every sequence, got 0.5 to 2',
    ),
  ],
}


@pytest.mark.parametrize('name', REFUSED)
def test_advantages_refuse_invalid_arguments(name):
  function = getattr(advantages, name)
  for arguments, options, sentence in REFUSED[name]:
    with pytest.raises((TypeError, ValueError), match=sentence):
      function(*arguments, **options)


def test_token_weights_refuse_invalid_arguments():
  weights = unchecked(covrl.token_weights)
  for arguments, options, sentence in (
    ((MASK[0],), {}, r'loss_mask must be \[B, T\], got \(8,\)'),
    ((TOKENS,), {}, 'loss_mask must be an array of bools, got float32'),
    ((MASK,), {'segment_ids': IDS}, r'segment_ids must be \[B, T\] = \(4, 8\)'),
    (
      (MASK, 'constant-length'),
      {'length': 0},
      'length must be positive, got 0',
    ),
  ):
    with pytest.raises((TypeError, ValueError), match=sentence):
      weights(*arguments, **options)


def test_rewards_of_nan_are_not_failures():
  with_nan = jax.jit(functools.partial(advantages.pass_at_k, k=2))(
    jnp.array([1.0, jnp.nan, 1.0, 0.0]), IDS
  )
  np.testing.assert_array_equal(jnp.isnan(with_nan), [True, True, False, False])
  scaled = advantages.unlikeliness(
    REWARDS, jnp.array([-1.0, jnp.nan, -1.0, -2.0]), IDS
  )
  np.testing.assert_array_equal(jnp.isnan(scaled), [True, True, False, False])


def test_deviations_that_overflow_do_not_make_advantages_zero():
  rewards = 3e19 * REWARDS
  for result in (
    advantages.group_relative(rewards, IDS),
    advantages.quantile_relative(rewards, IDS),
    advantages.reinforce_plus_plus_baseline(rewards, IDS, MASK),
    advantages.reinforce_plus_plus(rewards[:, None] * TOKENS, MASK),
  ):
    assert np.isnan(result).all()
  large = advantages.group_relative(1e18 * REWARDS, IDS)
  np.testing.assert_allclose(large, [0.5**0.5, -(0.5**0.5)] * 2, rtol=1e-6)


def test_invalid_rewards_and_lengths_make_their_group_nan():
  with_infinity = jnp.array([1.0, -jnp.inf, 1.0, 0.0])
  with_negative = jnp.array([1.0, -1.0, 1.0, 0.0])
  for result in (
    advantages.pass_at_k(with_infinity, IDS, k=2),
    advantages.max_likelihood(with_negative, IDS),
    advantages.opo(REWARDS, IDS, jnp.array([-3, 5, 1, 1])),
  ):
    np.testing.assert_array_equal(jnp.isnan(result), [True, True, False, False])


def test_group_ids_of_64_bits_are_refused():
  """JAX would keep their last 32 bits, which are equal here."""
  with pytest.raises(ValueError, match='group_ids must be integers of 32 bits'):
    unchecked(advantages.leave_one_out)(REWARDS, np.array([0, 0, 1, 1]) << 32)


def test_clipping_turns_non_finite_numbers_into_nan():
  rewards = jnp.full(4, jnp.inf)
  clipped = token_rewards(rewards, MASK, clip=1.0).rewards
  assert np.isnan(clipped[:, -1]).all()
  value, _ = losses.clipped_value_loss(
    TOKENS, old_values=jnp.nan * TOKENS, returns=0 * TOKENS, weights=TOKENS
  )
  assert np.isnan(value)


def test_weights_off_the_mask_are_refused_or_make_the_loss_nan():
  context = CONTEXT | {'mask': MASK.at[0, 0].set(False)}
  with pytest.raises(ValueError, match='weights must be 0 off the mask, got'):
    losses.clipped_surrogate(STATS, **context)
  value, _ = jax.jit(losses.clipped_surrogate)(STATS, **context)
  assert np.isnan(value)
