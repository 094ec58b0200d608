# SPDX-License-Identifier: Apache-2.0
"""Methods that drop tokens and sequences, against NumPy; independent of packing and mesh."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fast_compilation import QUICK

import covrl
from covrl.entropy import (
  decoupled_ppo,
  entropy_ratio_clip,
  icepop,
  reject_sequences,
  update_signal,
)
from covrl.parallel.sharding import make_mesh, shard_batch
from covrl.types import TokenStats

ROWS, LENGTH = 8, 12
LENGTHS = np.array([12, 5, 8, 1, 7, 12, 3, 6])
MASK = np.arange(LENGTH) < LENGTHS[:, None]
METHODS = {
  'icepop': icepop(),
  'decoupled_ppo': decoupled_ppo(1.2),
  'reject_sequences': reject_sequences(0.02),
  'entropy_ratio_clip': entropy_ratio_clip(),
}


def arrays(seed=0):
  """Sequences as rows: log-probabilities, entropies and advantages."""
  rng = np.random.default_rng(seed)
  old = -rng.exponential(size=MASK.shape)
  entropy = rng.uniform(0.2, 2, MASK.shape)
  spread = rng.uniform(0.02, 0.6, (ROWS, 1))
  return {
    'logprobs': old + 0.1 * rng.normal(size=MASK.shape),
    'entropy': entropy * np.exp(0.06 * rng.normal(size=MASK.shape)),
    'old_logprobs': old,
    'old_entropy': entropy,
    'sampler_logprobs': old + spread * rng.normal(size=MASK.shape),
    'advantages': rng.normal(size=(ROWS, 1)) * np.ones(MASK.shape),
  }


def batch_of(values, mask=MASK, segment_ids=None) -> tuple[TokenStats, Any]:
  """Statistics and context of `arrays`, with NaN off the mask."""
  kept = {
    name: jnp.asarray(np.where(mask, x, np.nan), jnp.float32)
    for name, x in values.items()
  }
  stats = TokenStats(logprobs=kept.pop('logprobs'), entropy=kept.pop('entropy'))
  context = kept | {
    'advantages': jnp.nan_to_num(kept['advantages']),
    'mask': jnp.asarray(mask),
    'weights': jnp.asarray(mask / mask.sum(), jnp.float32),
  }
  if segment_ids is not None:
    context['segment_ids'] = jnp.asarray(segment_ids)
  return stats, context


@functools.partial(jax.jit, static_argnums=0)
def factors(token_tx, stats, context):
  """Factors by which a transform multiplies a signal."""
  signal = jax.tree.map(jnp.ones_like, stats)
  state = token_tx.init(TokenStats.template())
  after, _ = update_signal(token_tx, signal, state, stats, **context)
  return after


def rows_of(stats, context, rows):
  """Some rows of a batch."""
  return jax.tree.map(lambda x: x[rows], (stats, context))


def check_factors(token_tx, expected, values=None):
  """Asserts that a transform multiplies by the expected factors."""
  after = factors(token_tx, *batch_of(values or arrays()))
  np.testing.assert_array_equal(after.logprobs, after.entropy)
  np.testing.assert_allclose(after.logprobs[MASK], expected[MASK], rtol=1e-5)
  assert 0 < np.count_nonzero(expected[MASK]) < MASK.sum()


def test_icepop_and_decoupled_ppo_drop_tokens_by_their_ratio():
  a = arrays()
  ratio = np.exp(a['old_logprobs'] - a['sampler_logprobs'])
  is_within_bounds = (ratio >= 0.8) & (ratio <= 1.2)
  check_factors(icepop(0.8, 1.2), np.where(is_within_bounds, ratio, 0))
  check_factors(decoupled_ppo(1.2), np.where(ratio <= 1.2, ratio, 0))


def test_decoupled_ppo_is_the_gradient_of_its_loss():
  """Ratios to the proximal policy are clipped; those to the sampler's policy are weights."""
  stats, context = batch_of(arrays())

  def published_loss(logprobs):
    old, a = context['old_logprobs'], context['advantages']
    weight = jnp.exp(old - context['sampler_logprobs'])
    ratio = jnp.exp(logprobs - old)
    losses = weight * jnp.maximum(-a * ratio, -a * jnp.clip(ratio, 0.9, 1.1))
    return jnp.sum(jnp.where(context['mask'], context['weights'] * losses, 0))

  loss = functools.partial(covrl.clipped_surrogate, low=0.1, high=0.1)
  signal = jax.grad(lambda s: loss(s, **context)[0])(stats)
  token_tx = decoupled_ppo(cap=1e9)
  state = token_tx.init(TokenStats.template())
  after, _ = update_signal(token_tx, signal, state, stats, **context)
  expected = jax.grad(published_loss)(stats.logprobs)
  np.testing.assert_allclose(
    after.logprobs[MASK], expected[MASK], rtol=1e-4, atol=1e-8
  )


DIVERGENCES = {
  'k1': lambda x: x,
  'k2': lambda x: x**2 / 2,
  'k3': lambda x: np.exp(-x) - 1 + x,
}


@pytest.mark.parametrize('reduction', ['mean', 'max', 'sum'])
@pytest.mark.parametrize('kind', DIVERGENCES)
def test_sequences_are_rejected_by_every_statistic(kind, reduction):
  a = arrays()
  x = a['sampler_logprobs'] - a['old_logprobs']
  reduce = {'mean': np.mean, 'sum': np.sum, 'max': lambda d: np.abs(d).max()}
  actual = np.array(
    [
      abs(reduce[reduction](DIVERGENCES[kind](row[:n])))
      for row, n in zip(x, LENGTHS, strict=True)
    ]
  )
  limit = float(np.median(actual))
  kept = (actual <= limit)[:, None] * np.ones(MASK.shape)
  check_factors(
    reject_sequences(limit * 1.001, kind=kind, reduction=reduction), kept
  )


def test_entropy_ratio_clip_drops_tokens_by_their_entropy_ratio():
  a = arrays()
  ratio = a['entropy'] / a['old_entropy']
  kept = (ratio >= 0.95) & (ratio <= 1.03)
  check_factors(entropy_ratio_clip(0.05, 0.03), kept.astype(float))


def test_rounding_of_a_deterministic_policy_is_not_a_change_of_entropy():
  a = arrays()
  certain = {
    'old_entropy': 0 * a['entropy'],
    'entropy': 0 * a['entropy'] + 5e-7,
  }
  after = factors(entropy_ratio_clip(), *batch_of(a | certain))
  assert (after.logprobs[MASK] == 1).all()


@pytest.mark.parametrize('name', METHODS)
def test_factors_do_not_depend_on_packing_order_or_mesh(name):
  values, token_tx = arrays(), METHODS[name]
  expected_factors = np.asarray(factors(token_tx, *batch_of(values)).logprobs)
  assert (expected_factors[MASK] == 0).any()
  # Two sequences per row, where they fit.
  packed_rows = [(1, 4), (3, 2), (0,), (7, 6), (5,)]
  packed = {entry: np.full((8, LENGTH), np.nan) for entry in values}
  mask, ids = np.zeros((8, LENGTH), bool), np.zeros((8, LENGTH), np.int32)
  slices = {}
  for row, sequences in enumerate(packed_rows):
    start = 0
    for number, i in enumerate(sequences):
      columns = (row, slice(start, start + LENGTHS[i]))
      slices[i], start = columns, start + LENGTHS[i]
      mask[columns], ids[columns] = True, number + 1
      for entry, value in values.items():
        packed[entry][columns] = value[i, : LENGTHS[i]]
  batch = batch_of(packed, mask, ids)
  for other in (batch, shard_batch(batch, make_mesh((4, 2)))):
    result = np.asarray(factors(token_tx, *other).logprobs)
    for i, columns in slices.items():
      np.testing.assert_allclose(
        result[columns], expected_factors[i, : LENGTHS[i]], rtol=1e-6
      )
  # Rows in another order, and in two micro-batches.
  stats, context = batch_of(values)
  order = np.random.default_rng(1).permutation(ROWS)
  shuffled = factors(token_tx, *rows_of(stats, context, order)).logprobs
  expected = expected_factors[order][MASK[order]]
  np.testing.assert_array_equal(shuffled[MASK[order]], expected)
  halves = [
    np.asarray(factors(token_tx, *rows_of(stats, context, part)).logprobs)
    for part in (slice(0, 4), slice(4, 8))
  ]
  np.testing.assert_array_equal(
    np.concatenate(halves)[MASK], expected_factors[MASK]
  )


def test_composes_with_covariance_methods_and_controllers():
  """Covariance methods after them select the same tokens and keep penalties."""
  stats, context = batch_of(arrays())
  row = np.arange(ROWS)[:, None] + np.zeros(MASK.shape, int)
  context |= {
    'sequence_ids': jnp.asarray(row),
    'positions': jnp.asarray(np.arange(LENGTH) + 0 * row),
    'entropy': jnp.asarray(0.4),
    'step': jnp.asarray(0),
    'key': jax.random.key(0),
  }
  covariance_chain = optax.chain(
    covrl.clip_cov(0.05, low=-9.0, high=9.0),
    covrl.kl_cov(0.05),
    covrl.entropy_bonus(covrl.controllers.adaptive_bonus(0.9)),
  )

  def run(chain):
    return update_signal(
      chain, signal, chain.init(TokenStats.template()), stats, **context
    )

  @functools.partial(jax.jit, compiler_options=QUICK)
  def run_without_and_with():
    return run(covariance_chain), run(
      optax.chain(*METHODS.values(), covariance_chain)
    )

  signal = jax.grad(lambda s: covrl.policy_gradient(s, **context)[0])(stats)
  context |= {'clipped': jnp.zeros(MASK.shape, bool)}
  (without, state_without), (after, (*_, state)) = run_without_and_with()
  for actual_leaf, expected_leaf in zip(
    *map(jax.tree.leaves, (state_without, state)), strict=True
  ):
    np.testing.assert_array_equal(actual_leaf, expected_leaf)
  assert (after.logprobs != without.logprobs)[MASK].any()
  np.testing.assert_array_equal(after.entropy[MASK], without.entropy[MASK])


@pytest.mark.parametrize('name', METHODS)
def test_nan_statistics_give_nan_factors(name):
  values = arrays()
  for x in ('entropy', 'sampler_logprobs'):
    values[x][2, 3] = np.nan
  factor = np.asarray(factors(METHODS[name], *batch_of(values)).logprobs)
  assert np.isnan(factor[2, 3])
  # The masked rest of the rows is NaN, too, and has no effect.
  other_rows = MASK & (np.arange(ROWS) != 2)[:, None]
  assert np.isfinite(factor[other_rows]).all()


@pytest.mark.parametrize(
  ('name', 'entry'),
  [
    ('icepop', 'sampler_logprobs'),
    ('decoupled_ppo', 'old_logprobs'),
    ('reject_sequences', 'sampler_logprobs'),
    ('entropy_ratio_clip', 'old_entropy'),
  ],
)
def test_a_missing_entry_is_an_error_with_its_name(name, entry):
  stats, context = batch_of(arrays())
  del context[entry]
  with pytest.raises(TypeError, match=f'{entry} must be in the context of'):
    factors(METHODS[name], stats, context)


def test_refuses_options_outside_their_range():
  for make, sentence in (
    (lambda: reject_sequences(-1.0), 'limit must be finite and at least 0'),
    (lambda: icepop(5.0, 0.5), 'got floor=5 and cap=0.5'),
    (lambda: entropy_ratio_clip(low=5.0), r'low must lie in \[0, 1\]'),
  ):
    with pytest.raises(ValueError, match=sentence):
      make()
