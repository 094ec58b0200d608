# SPDX-License-Identifier: Apache-2.0
"""Statistics of the loss's tokens alone, or without moments, are unchanged."""

import jax
import numpy as np
from train.updates import (
  POLICY,
  fresh_state,
  padded_batch,
  parameters,
  program,
  score,
  update,
)

from covrl.statistics import compaction, stats
from covrl.train.forward import policy_stats

METHOD = {'kl_cov_fraction': 0.04, 'kl_cov_coefficient': 1.0, 'bonus': 0.1}


def test_gathered_update_equals_one_with_whole_logits(monkeypatch):
  """On a mesh and in micro-batches; the same tokens are selected."""
  setup, rows = ((4, 2), 2), padded_batch()
  state = fresh_state('kl_cov_and_bonus', **METHOD)
  expected, expected_metrics = update(
    *setup, rows, state, chain='kl_cov_and_bonus'
  )
  monkeypatch.setattr(stats, 'MAX_WHOLE_LOGITS', 0)
  # 96 tokens of a device and micro-batch, in eight blocks, and several chunks.
  monkeypatch.setattr(compaction, 'MIN_ROWS_PER_BLOCK', 8)
  monkeypatch.setattr(stats, 'MIN_CHUNK_LOGITS', 0)
  program.cache_clear()
  new_state, metrics = update(*setup, rows, state, chain='kl_cov_and_bonus')
  program.cache_clear()
  for actual_leaf, expected_leaf in zip(
    jax.tree.leaves(new_state.opt_state[0].trace),
    jax.tree.leaves(expected.opt_state[0].trace),
    strict=True,
  ):
    scale = np.abs(expected_leaf).max()
    np.testing.assert_allclose(
      actual_leaf, expected_leaf, rtol=1e-5, atol=1e-5 * scale
    )
  assert expected_metrics['selected'] > 0
  for name in ('selected', 'threshold', 'tokens', 'skipped'):
    assert metrics[name] == expected_metrics[name], name
  for name in expected_metrics:
    np.testing.assert_allclose(
      metrics[name], expected_metrics[name], rtol=1e-4, atol=1e-5, err_msg=name
    )


def test_statistics_off_the_mask_are_zero():
  rows = padded_batch()
  statistics = score(parameters(), rows)
  for leaf in jax.tree.leaves(statistics):
    assert not np.asarray(leaf)[~rows.loss_mask].any()
    assert np.asarray(leaf)[rows.loss_mask].any()


def test_statistics_do_not_depend_on_whether_moments_are_computed():
  rows = padded_batch()
  expected, _ = score(parameters(), rows)
  stats, moments = jax.jit(
    lambda params, rows: policy_stats(
      POLICY, params, rows, 0.8, 0, moments=False
    )
  )(parameters(), rows)
  for actual_leaf, expected_leaf in zip(
    jax.tree.leaves(stats), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(actual_leaf, expected_leaf, rtol=1e-6, atol=1e-6)
  for leaf in jax.tree.leaves(moments):
    assert np.isnan(leaf).all()
