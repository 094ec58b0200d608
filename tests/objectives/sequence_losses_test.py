# SPDX-License-Identifier: Apache-2.0
"""Sequence-level losses: formulas, packed and padded rows, meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covrl.objectives import geo_mean, gspo, token_weights, vespo
from covrl.parallel.sharding import make_mesh, shard_batch
from covrl.types import TokenStats

LOSSES = {
  'token': functools.partial(gspo, low=0.2, high=0.2),
  'sequence': functools.partial(gspo, low=0.2, high=0.2, form='sequence'),
  'geo_mean': functools.partial(geo_mean, low=0.3, high=0.3),
  'vespo': vespo,
}
LENGTHS = (3, 5, 1, 4, 2, 6, 3)


@functools.partial(jax.jit, static_argnums=0)
def run(loss, logprobs, context):
  stats = TokenStats(logprobs=logprobs, entropy=jnp.zeros_like(logprobs))
  (value, aux), signal = jax.value_and_grad(loss, has_aux=True)(
    stats, **context
  )
  return value, aux, signal.logprobs


def sequences(seed=0):
  """Per sequence: log π, log π_old, advantages, weights; some weights are 0."""
  rng = np.random.default_rng(seed)
  result = []
  for length in LENGTHS:
    old = -rng.exponential(size=length)
    new = old + 0.4 * rng.normal(size=length)
    advantages = np.full(length, rng.normal()) + 0.1 * rng.random(length)
    weights = rng.random(length) * (rng.random(length) < 0.8)
    result.append(np.stack([new, old, advantages, weights]))
  return result


def lay_out(drawn_sequences, rows):
  """Batches the sequences; `rows` lists the sequences of each row."""
  length = max(sum(LENGTHS[i] for i in row) for row in rows)
  arrays = np.full((4, len(rows), length), np.nan)
  arrays[3] = 0
  segment_ids = np.zeros((len(rows), length), np.int32)
  slices = {}
  for r, row in enumerate(rows):
    start = 0
    for n, i in enumerate(row):
      slices[i] = (r, slice(start, start + LENGTHS[i]))
      arrays[:, r, slices[i][1]] = drawn_sequences[i]
      segment_ids[slices[i]] = n + 1
      start += LENGTHS[i]
  logprobs, old, advantages, weights = jnp.asarray(arrays)
  context = {
    'old_logprobs': old,
    'advantages': advantages,
    'weights': weights,
    'segment_ids': jnp.asarray(segment_ids),
  }
  return logprobs, context, slices


PADDED = tuple((i,) for i in range(len(LENGTHS)))
PACKED = ((1, 0), (), (5, 2, 3), (6, 4))


@pytest.mark.parametrize('name', LOSSES)
def test_padded_and_packed_rows_give_the_same_loss(name):
  drawn_sequences = sequences()
  logprobs, context, slices = lay_out(drawn_sequences, PADDED)
  value, aux, signal = run(LOSSES[name], logprobs, context)
  rows = dict(context)
  del rows['segment_ids']
  packed_logprobs, packed, packed_slices = lay_out(drawn_sequences, PACKED)
  for other_results, other_slices in (
    (run(LOSSES[name], logprobs, rows), slices),
    (run(LOSSES[name], packed_logprobs, packed), packed_slices),
  ):
    np.testing.assert_allclose(other_results[0], value, rtol=1e-6)
    for i, columns in slices.items():
      other_columns = other_slices[i]
      np.testing.assert_allclose(
        other_results[2][other_columns], signal[columns], rtol=2e-6, atol=1e-9
      )
      np.testing.assert_allclose(
        other_results[1].ratio[other_columns], aux.ratio[columns], rtol=1e-6
      )
      np.testing.assert_array_equal(
        other_results[1].clipped[other_columns], aux.clipped[columns]
      )


def expected_gspo(drawn_sequences):
  total = 0.0
  for new, old, advantages, weights in drawn_sequences:
    has_weight = weights > 0
    if not has_weight.any():
      continue
    ratio = np.exp(np.mean((new - old)[has_weight]))
    clipped = np.clip(ratio, 0.8, 1.2)
    losses = np.maximum(-advantages * ratio, -advantages * clipped)
    total += np.sum((weights * losses)[has_weight])
  return total


def expected_geo_mean(drawn_sequences):
  total = 0.0
  for new, old, advantages, weights in drawn_sequences:
    has_weight = weights > 0
    if not has_weight.any():
      continue
    sign, log_ratio = np.sign(advantages[has_weight]), (new - old)[has_weight]
    clipped_log_ratio = (
      np.minimum(sign * log_ratio, sign * np.clip(log_ratio, -0.3, 0.3)) * sign
    )
    ratio, advantage = (
      np.exp(np.mean(clipped_log_ratio)),
      np.mean(advantages[has_weight]),
    )
    total += np.sum(weights[has_weight] * -advantage * ratio)
  return total


def vespo_weights(new, old, advantages, has_weight):
  """A · φ(w) of each token, with the published shapes and rates."""
  log_w = np.sum((new - old)[has_weight])
  shape = np.where(advantages >= 0, 2.0, 3.0)
  rate = np.where(advantages >= 0, 3.0, 2.0)
  return advantages * np.exp(shape * log_w + rate - rate * np.exp(log_w))


def expected_vespo(drawn_sequences):
  total = 0.0
  for new, old, advantages, weights in drawn_sequences:
    has_weight = weights > 0
    factor = vespo_weights(new, old, advantages, has_weight)
    total -= np.sum((weights * factor * new)[has_weight])
  return total


FORMULAS = {'geo_mean': expected_geo_mean, 'vespo': expected_vespo}


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('name', LOSSES)
def test_value_and_gradient_equal_the_formula(name, seed, x64):
  drawn_sequences = sequences(seed)
  logprobs, context, slices = lay_out(drawn_sequences, PADDED)
  value, _, signal = run(LOSSES[name], logprobs, context)
  formula = FORMULAS.get(name, expected_gspo)
  np.testing.assert_allclose(value, formula(drawn_sequences), rtol=1e-7)
  if name == 'token':
    # By design not the derivative of the formula; see the golden test.
    return
  if name == 'vespo':
    # Its weight is a constant.
    for i, (new, old, advantages, weights) in enumerate(drawn_sequences):
      factor = vespo_weights(new, old, advantages, weights > 0)
      np.testing.assert_allclose(signal[slices[i]], -weights * factor)
    return
  for i, columns in slices.items():
    for t in range(LENGTHS[i]):
      step = np.zeros_like(drawn_sequences[i])
      step[0, t] = 1e-6
      increased, decreased = (
        [
          *drawn_sequences[:i],
          drawn_sequences[i] + s,
          *drawn_sequences[i + 1 :],
        ]
        for s in (step, -step)
      )
      slope = (formula(increased) - formula(decreased)) / 2e-6
      np.testing.assert_allclose(
        signal[columns][t], slope, rtol=1e-5, atol=1e-8
      )


@pytest.mark.parametrize('name', LOSSES)
def test_mesh_gives_the_same_loss_without_all_gather(name):
  drawn_sequences = sequences()
  logprobs, context, _ = lay_out(drawn_sequences, (*PACKED, (), (), (), ()))
  mesh = make_mesh((4, 2))
  sharded = shard_batch((logprobs, context), mesh)
  value, _, signal = run(LOSSES[name], logprobs, context)
  other_value, _, other_signal = run(LOSSES[name], *sharded)
  np.testing.assert_allclose(other_value, value, rtol=1e-6)
  np.testing.assert_allclose(other_signal, signal, rtol=1e-6, atol=1e-9)
  program = run.lower(LOSSES[name], *sharded).compile().as_text()
  assert program is not None
  assert 'all-gather' not in program
  assert 'all-to-all' not in program


def test_vespo_fades_on_both_sides_and_stays_finite():
  def weight(log_ratio, advantage):
    stats = TokenStats(
      logprobs=jnp.full((1, 1), log_ratio - 9.0), entropy=jnp.zeros((1, 1))
    )
    _, aux = vespo(
      stats,
      advantages=jnp.full((1, 1), advantage),
      old_logprobs=jnp.full((1, 1), -9.0),
      weights=jnp.ones((1, 1)),
    )
    return float(aux.score_weight[0, 0])

  assert weight(0.0, 1.0) == 1.0
  assert weight(0.0, -1.0) == -1.0
  for advantage in (1.0, -1.0):
    for log_ratio in (-9.0, 8.0, 50.0):
      assert abs(weight(log_ratio, advantage)) < 1e-6


def test_gspo_with_sums_over_tokens_is_luspo():
  """Each sequence's clipped loss, times its length, averaged over sequences."""
  rng = np.random.default_rng(3)
  lengths = np.array([2, 4, 1])
  mask = np.arange(4) < lengths[:, None]
  old = -rng.exponential(size=mask.shape)
  log_ratio = 0.3 * rng.normal(size=mask.shape)
  advantages = np.array([1.0, -0.5, 2.0])
  means = np.array([log_ratio[i, :n].mean() for i, n in enumerate(lengths)])
  ratio = np.exp(means)
  clipped = np.clip(ratio, 0.9, 1.1)
  losses = -np.minimum(advantages * ratio, advantages * clipped)
  value, _ = gspo(
    TokenStats(
      logprobs=jnp.asarray(old + log_ratio), entropy=jnp.zeros(mask.shape)
    ),
    low=0.1,
    high=0.1,
    advantages=jnp.asarray(np.where(mask, advantages[:, None], 0)),
    old_logprobs=jnp.asarray(old),
    weights=token_weights(jnp.asarray(mask), 'sequence-mean-token-sum'),
  )
  np.testing.assert_allclose(value, np.mean(losses * lengths), rtol=1e-5)
