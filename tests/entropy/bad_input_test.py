# SPDX-License-Identifier: Apache-2.0
"""Bad arguments: refused before anything runs, with the argument's name."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import covrl
from covrl import TokenMoments, TokenStats
from covrl.entropy import Selection, exact_mean
from covrl.entropy.base import update_signal

SHAPE = (4, 10)


ONES = jnp.ones(SHAPE, bool)


def untyped(option: object) -> Any:
  """A value as `Any`, which the type checker accepts for every argument."""
  return option


REFUSED = {
  'a fraction above 5 %': (
    lambda: covrl.kl_cov(fraction=0.2),
    r'fraction must lie in \(0, 0\.05\], got 0\.2; pass allow_large=True',
  ),
  'a fraction above 1': (
    lambda: covrl.kl_cov(fraction=1.5, allow_large=True),
    r'fraction must lie in \(0, 1\], got 1\.5$',
  ),
  'a fraction of 0': (
    lambda: covrl.clip_cov(fraction=0.0),
    r'fraction must lie in \(0, 0\.05\], got 0$',
  ),
  'a negative fraction': (
    lambda: covrl.selectors.random_tokens(-0.01),
    r'fraction must lie in .*, got -0\.01',
  ),
  'a fraction that is not a number': (
    lambda: covrl.kl_cov(fraction=float('nan')),
    r'fraction must lie in .*, got nan',
  ),
  'a fraction of forking tokens above 1': (
    lambda: covrl.forking_tokens(1.2),
    r'fraction must lie in \(0, 1\], got 1\.2',
  ),
  'a fraction in an array': (
    lambda: covrl.kl_cov(fraction=jnp.asarray(0.2)),
    r'fraction must lie in \(0, 0\.05\], got 0\.2',
  ),
  'a fraction of a selection': (
    lambda: covrl.select_top(jnp.ones(SHAPE), ONES, fraction=2.0),
    r'fraction must lie in \[0, 1\], got 2',
  ),
  'inverted bounds': (
    lambda: covrl.clip_cov(low=5.0, high=1.0),
    'low must be below high, got low=5 and high=1',
  ),
  'a bound that is not a number': (
    lambda: covrl.clip_cov(low=float('nan')),
    'low must be below high, got low=nan and high=5',
  ),
  'an unknown score': (
    lambda: covrl.kl_cov(score=untyped('cov')),
    r"score must be one of \('batch', .*, got 'cov'",
  ),
  'an unknown divergence': (
    lambda: covrl.kl_cov(divergence=untyped('kl')),
    r"divergence must be one of \('abs', .*, got 'kl'",
  ),
  'an unknown source of a selection': (
    lambda: covrl.clip_cov(selection_source=untyped('new')),
    r"selection_source must be one of \('old', 'current'\), got 'new'",
  ),
  'an unknown scope': (
    lambda: covrl.kl_cov(scope=untyped('rank')),
    r"scope must be one of \('batch', 'micro_batch'\), got 'rank'",
  ),
  'an unknown reference': (
    lambda: covrl.add_divergence_penalty(1.0, reference=untyped('logprobs')),
    r"reference must be one of \('old_logprobs', .*, got 'logprobs'",
  ),
  'a negative coefficient': (
    lambda: covrl.kl_cov(coefficient=-1.0),
    'coefficient must be finite and at least 0, got -1',
  ),
  'an infinite coefficient': (
    lambda: covrl.entropy_bonus(float('inf')),
    'coefficient must be finite and at least 0, got inf',
  ),
  'a schedule of a negative coefficient': (
    lambda: covrl.kl_cov(coefficient=optax.linear_schedule(-1.0, 0.0, 100)),
    'coefficient must be finite and at least 0, got -1',
  ),
  'a schedule of NaN': (
    lambda: covrl.entropy_bonus(optax.constant_schedule(float('nan'))),
    'coefficient must be finite and at least 0, got nan',
  ),
  'a negative dead zone': (
    lambda: covrl.kl_cov(dead_zone=-1e-3),
    'dead_zone must be finite and at least 0, got -0.001',
  ),
  'a negative minimum': (
    lambda: covrl.kl_cov(minimum=-1),
    'minimum must be a whole number of tokens, at least 0, got -1',
  ),
  'a minimum of half a token': (
    lambda: covrl.clip_cov(minimum=0.5),
    'minimum must be a whole number of tokens, at least 0, got 0.5',
  ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_refuses_bad_arguments_before_running(name):
  make, message = REFUSED[name]
  with pytest.raises(ValueError, match=message):
    make()


TOKEN_STATS = TokenStats(logprobs=-jnp.ones(SHAPE), entropy=jnp.ones(SHAPE))


WEIGHTS = jnp.ones(SHAPE) / 40


def run_once(tx: Any, stats=TOKEN_STATS, updates=TOKEN_STATS, **context):
  """One update by a token transform."""
  return tx.update(updates, tx.init(TokenStats.template()), stats, **context)


def bonus(**arguments):
  """One update by an entropy bonus."""
  return run_once(covrl.entropy_bonus(0.1), **{'weights': WEIGHTS, **arguments})


MISTYPED = {
  'text as a fraction': (
    lambda: covrl.kl_cov(fraction=untyped('0.1')),
    "fraction must be a number or a schedule, got '0.1'",
  ),
  'a bool as a fraction': (
    lambda: covrl.kl_cov(fraction=True),
    'fraction must be a number or a schedule, got True',
  ),
  'None as a fraction': (
    lambda: covrl.clip_cov(fraction=untyped(None)),
    'fraction must be a number or a schedule, got None',
  ),
  'several fractions': (
    lambda: covrl.kl_cov(fraction=jnp.array([0.01, 0.02])),
    r'fraction must be a scalar, got the shape \(2,\)',
  ),
  'text as a fraction of a selection': (
    lambda: covrl.select_top(jnp.ones(SHAPE), ONES, fraction=untyped('half')),
    "fraction must be a number, got 'half'",
  ),
  'a schedule as a minimum': (
    lambda: covrl.kl_cov(minimum=untyped(lambda step: 1)),
    'minimum must be a number, got <function',
  ),
  'text as a coefficient': (
    lambda: covrl.entropy_bonus(untyped('1e-3')),
    "coefficient must be a number or a schedule, got '1e-3'",
  ),
  'text as a target': (
    lambda: covrl.adaptive_bonus(untyped('0.2')),
    "target must be a number or a schedule, got '0.2'",
  ),
  'text as a bound': (
    lambda: covrl.clip_cov(low=untyped('1')),
    "low must be a number, got '1'",
  ),
  'text as an increment': (
    lambda: covrl.adaptive_bonus(increment=untyped('1')),
    "increment must be a number, got '1'",
  ),
  'text as a cap': (
    lambda: covrl.truncated_importance_weights(untyped('2')),
    "cap must be a number, got '2'",
  ),
  'text as a bound of STEER': (
    lambda: covrl.steer(low=untyped('0.8')),
    "low must be a number, got '0.8'",
  ),
  'Adam as a token chain': (
    lambda: covrl.as_loss(covrl.policy_gradient, optax.adam(1e-3)),
    'token chain of as_loss must have a state of scalars only',
  ),
  'Adam within a token chain': (
    lambda: covrl.as_loss(
      covrl.policy_gradient,
      optax.chain(covrl.kl_cov(), optax.inject_hyperparams(optax.adam)(0.1)),
    ),
    'token chain of as_loss must have a state of scalars only',
  ),
  'Adam on selected tokens': (
    lambda: covrl.token_masked(
      optax.adam(1e-3), covrl.selectors.top_entropy(0.5)
    ),
    'token chain of token_masked must',
  ),
  'Adam as the token chain of update_signal': (
    lambda: update_signal(
      optax.adam(1e-3),
      TOKEN_STATS,
      optax.adam(1e-3).init(TokenStats.template()),
      TOKEN_STATS,
    ),
    'token chain of update_signal must',
  ),
  'a method that was not called': (
    lambda: covrl.as_loss(covrl.policy_gradient, untyped(covrl.kl_cov)),
    'token chain of as_loss must be an optax.GradientTransformation such as',
  ),
  'weights of a row': (
    lambda: bonus(weights=WEIGHTS[0]),
    r'weights must be \[B, T\] = \(4, 10\), got \(10,\)',
  ),
  'a mask of a row': (
    lambda: bonus(mask=ONES[0]),
    r'mask must be \[B, T\] = \(4, 10\), got \(10,\)',
  ),
  'integers as a mask': (
    lambda: bonus(mask=ONES.astype(int)),
    'mask must be an array of bools, got int32',
  ),
  'an entropy per row': (
    lambda: bonus(entropy=jnp.ones(4)),
    r'entropy must be a scalar, got \(4,\)',
  ),
  'identities that are floats': (
    lambda: bonus(positions=jnp.ones(SHAPE)),
    'positions must be an array of integers, got float32',
  ),
  'a signal of another shape': (
    lambda: bonus(updates=jax.tree.map(lambda leaf: leaf[:1], TOKEN_STATS)),
    r'updates.logprobs must be \[B, T\] = \(4, 10\), got \(1, 10\)',
  ),
  'an entropy of another shape': (
    lambda: bonus(stats=dataclasses.replace(TOKEN_STATS, entropy=jnp.ones(10))),
    r'stats.entropy must be \[B, T\] = \(4, 10\), got \(10,\)',
  ),
  'a signal of integers, to which a bonus adds 0': (
    lambda: bonus(
      updates=jax.tree.map(lambda leaf: leaf.astype(int), TOKEN_STATS)
    ),
    'updates.logprobs must be an array of floats, got int32',
  ),
  'a mask that is a list': (
    lambda: bonus(mask=ONES.tolist()),
    'mask must be an array of bools, got a list',
  ),
  'a controller as a fraction': (
    lambda: covrl.kl_cov(fraction=untyped(covrl.adaptive_bonus())),
    'fraction must be a number or a schedule of the step, got _AdaptiveBonus',
  ),
  'a state of another token chain': (
    lambda: update_signal(
      covrl.kl_cov(),
      TOKEN_STATS,
      covrl.entropy_bonus(0.1).init(TokenStats.template()),
      TOKEN_STATS,
    ),
    'token_state must be a state of the token chain, .* got .*ScheduledState',
  ),
  'a loss without a LossAux': (
    lambda: covrl.as_loss(
      untyped(lambda stats, **_: (jnp.sum(stats.logprobs), None)),
      covrl.entropy_bonus(0.1),
    )(TOKEN_STATS, covrl.entropy_bonus(0.1).init(TokenStats.template())),
    'the loss of as_loss must return a value and a LossAux, got NoneType',
  ),
  'a mask as a selector': (
    lambda: covrl.token_masked(optax.set_to_zero(), untyped(None)),
    'selector must be a function, got None',
  ),
  'a selection under a mask of a row': (
    lambda: covrl.select_top(jnp.ones(SHAPE), ONES[0], fraction=0.1),
    r'mask must be \(4, 10\), got \(10,\)',
  ),
  'a covariance with one advantage per row': (
    lambda: covrl.token_covariance(TOKEN_STATS.logprobs, jnp.ones(4), ONES),
    r'advantages must be \[B, T\] = \(4, 10\), got \(4,\)',
  ),
  'a mean under a mask of a row': (
    lambda: exact_mean(jnp.ones(SHAPE), ONES[0]),
    r'mask must be \(4, 10\), got \(10,\)',
  ),
  'a selector that returns a row': (
    lambda: run_once(
      covrl.token_masked(
        optax.set_to_zero(), lambda stats, **_: stats.logprobs[0] < 0
      )
    ),
    r"the selector's mask must be \[B, T\] = \(4, 10\), got \(10,\)",
  ),
  'a selector that returns a selection of a row': (
    lambda: run_once(
      covrl.token_masked(
        optax.set_to_zero(), lambda *_, **__: Selection.of_mask(ONES[0])
      )
    ),
    r"the selector's mask must be \[B, T\] = \(4, 10\), got \(10,\)",
  ),
  'a transform of selected tokens that returns a sum': (
    lambda: run_once(
      covrl.token_masked(
        optax.stateless(lambda updates, _: jax.tree.map(jnp.sum, updates)),
        lambda stats, **_: stats.logprobs < 0,
      )
    ),
    r'the transform of token_masked must return .* got TokenStats of float32\[\]',
  ),
  'a controller with a coefficient per column': (
    lambda: run_once(
      covrl.entropy_bonus(untyped(ConstantController(jnp.ones(10)))),
      weights=WEIGHTS,
    ),
    r'the coefficient of add_entropy_bonus must be a scalar, got \(10,\)',
  ),
  'a schedule of targets with one per column': (
    lambda: run_once(
      covrl.entropy_bonus(covrl.adaptive_bonus(lambda step: jnp.ones(10))),
      weights=WEIGHTS,
      entropy=jnp.ones(()),
      step=jnp.ones((), int),
    ),
    r'the value of a schedule must be a scalar, got \(10,\)',
  ),
  'decisions that are not a cache': (
    lambda: bonus(decisions={}),
    r'decisions must be a DecisionCache, got \{\}',
  ),
  'moments that are not TokenMoments': (
    lambda: bonus(moments={'square': ONES}),
    'moments must be a TokenMoments, got dict',
  ),
  'a seed as a key': (
    lambda: bonus(key=0),
    'key must be a PRNG key, such as .*, got 0',
  ),
  'several keys': (
    lambda: bonus(key=jax.random.split(jax.random.key(0), 2)),
    r'key must be a single PRNG key, .*\[2\]',
  ),
  'moments of a row in a score': (
    lambda: covrl.exact_score(TOKEN_STATS, row_moments(), WEIGHTS),
    r'moments.square must be \[B, T\] = \(4, 10\), got \(10,\)',
  ),
  'moments of a row in a prediction': (
    lambda: covrl.entropy_change(TOKEN_STATS, TOKEN_STATS, row_moments()),
    r'moments.square must be \[B, T\] = \(4, 10\), got \(10,\)',
  ),
  'a mask of a row in a score': (
    lambda: covrl.jvp_score(lambda _: TOKEN_STATS, 1.0, WEIGHTS, ONES[0]),
    r'mask must be \[B, T\], got \(10,\)',
  ),
  'ids of 64 bits, which JAX would cut': (
    lambda: bonus(sequence_ids=np.full(SHAPE, 2**32)),
    'sequence_ids must be integers of 32 bits, .*, got 4294967296',
  ),
}


def row_moments():
  """Moments of one row, which would be broadcast."""
  row = jnp.ones(10)
  return TokenMoments(square=row, square_log=row, square_log_square=row)


class ConstantController(NamedTuple):
  """A controller with a constant coefficient."""

  value: Any

  def init(self) -> tuple[()]:
    return ()

  def update(self, state: tuple[()], **_: Any) -> tuple[()]:
    return state

  def __call__(self, state: tuple[()], **_: Any) -> Any:
    return self.value


@pytest.mark.usefixtures('no_annotation_checks')
@pytest.mark.parametrize('name', MISTYPED)
def test_refuses_arguments_of_another_type_or_shape(name):
  make, message = MISTYPED[name]
  with pytest.raises((TypeError, ValueError), match=message):
    make()
