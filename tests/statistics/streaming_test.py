# SPDX-License-Identifier: Apache-2.0
"""Streaming sums: parts of a vocabulary merge into the sums of the whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from covrl.statistics import streaming

VOCABULARY = 9


def tile(logits, target):
  return streaming.LogitTile(
    capped=logits, scaled=logits, is_target=jnp.arange(VOCABULARY) == target
  )


@jax.jit
def merged(logits, target, part_of_token):
  """Statistics from three parts merged in two orders, and from the whole."""
  parts = [
    streaming.tile_sums(
      tile(jnp.where(part_of_token == part, logits, -jnp.inf), target)._replace(
        is_target=(jnp.arange(VOCABULARY) == target) & (part_of_token == part)
      ),
      moments=True,
    )
    for part in range(3)
  ]
  start = streaming.empty_sums(parts[0].peak, moments=True)
  in_order = functools.reduce(streaming.merge_sums, parts, start)
  reversed_order = streaming.merge_sums(
    parts[2], streaming.merge_sums(parts[1], parts[0])
  )
  all_sums = streaming.tile_sums(tile(logits, target), moments=True)
  return [
    streaming.stats_from_sums(sums)
    for sums in (in_order, reversed_order, all_sums)
  ]


@given(
  arrays(np.float32, (2, VOCABULARY), elements=st.floats(-60, 60, width=32)),
  arrays(bool, VOCABULARY),
  arrays(np.int32, VOCABULARY, elements=st.integers(0, 2)),
  st.integers(0, VOCABULARY - 1),
)
@settings(max_examples=60, deadline=None)
def test_sums_of_parts_merge_into_those_of_the_whole(
  logits, masked, part_of_token, target
):
  masked[target] = False
  logits = np.where(masked, -np.inf, logits)
  *results, of_all_logits = merged(logits, target, part_of_token)
  for result in results:
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
      result,
      of_all_logits,
    )
  z = logits.astype('f8')
  log_pi = z - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1))[:, None]
  log_pi -= z.max(1, keepdims=True)
  stats, moments, _ = results[0]
  finite = np.where(masked, 0, log_pi)
  for actual, expected in (
    (stats.logprobs, log_pi[:, target]),
    (stats.entropy, -(np.exp(log_pi) * finite).sum(1)),
    (
      moments.square_log_square,
      (np.exp(log_pi) * finite**2 * np.exp(log_pi)).sum(1),
    ),
  ):
    np.testing.assert_allclose(actual[:, 0], expected, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize('distance', [1e3, 1e20, 3e38])
def test_parts_with_distant_peaks_merge_without_nan(distance):
  """A part whose peak is far below contributes 0 and no NaN."""
  low = jnp.array([[-distance, -distance]])
  parts = [
    streaming.tile_sums(
      streaming.LogitTile(z, z, jnp.array([[is_target, False]])), moments=True
    )
    for z, is_target in ((low, True), (jnp.array([[0.0, 0.0]]), False))
  ]
  stats, moments, _ = streaming.stats_from_sums(
    streaming.merge_sums(parts[0], parts[1])
  )
  assert moments is not None
  assert stats.logprobs == pytest.approx(-distance, rel=1e-3)
  assert stats.entropy == pytest.approx(np.log(2), rel=1e-6)
  assert moments.square == pytest.approx(0.5)


def test_parts_without_a_possible_token_do_not_change_the_sums():
  part = jnp.full((1, 2), -jnp.inf)
  impossible = streaming.tile_sums(
    streaming.LogitTile(part, part, jnp.zeros((1, 2), bool)), moments=True
  )
  start = streaming.empty_sums(impossible.peak, moments=True)
  logits = jnp.array([[1.0, 2.0]])
  possible = streaming.tile_sums(
    streaming.LogitTile(logits, logits, jnp.array([[True, False]])),
    moments=True,
  )
  for sums in (
    streaming.merge_sums(impossible, possible),
    streaming.merge_sums(possible, impossible),
  ):
    jax.tree.map(np.testing.assert_array_equal, sums, possible)
  # The sums of two such parts are the identity of the merge.
  jax.tree.map(
    np.testing.assert_array_equal,
    streaming.merge_sums(start, impossible),
    start,
  )


def test_nan_logits_give_nan_statistics():
  logits = jnp.array([[0.0, jnp.nan, 1.0]])
  sums = streaming.tile_sums(
    streaming.LogitTile(logits, logits, jnp.array([[True, False, False]])),
    moments=False,
  )
  stats, _, _ = streaming.stats_from_sums(streaming.merge_sums(sums, sums))
  assert np.isnan(stats.logprobs).all()
  assert np.isnan(stats.entropy).all()
