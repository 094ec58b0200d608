# SPDX-License-Identifier: Apache-2.0
"""Updates with numbers that are not finite are skipped and change nothing."""

import dataclasses

import numpy as np
import pytest
from train.token_chains import METHODS
from train.updates import (
  assert_same_bits,
  fresh_state,
  padded_batch,
  parameters,
  update,
)


@pytest.mark.parametrize('micro_batches', [1, 8])
@pytest.mark.parametrize('bad', [np.nan, np.inf])
@pytest.mark.parametrize('location', ['advantages', 'trainable'])
def test_skips_updates_that_are_not_finite(micro_batches, bad, location):
  before = fresh_state(**METHODS['clip_cov and kl_cov with bonus'])
  batch = padded_batch()
  if location == 'advantages':
    row, column = np.argwhere(batch.loss_mask)[7]
    spoilt = batch.advantages.copy()
    spoilt[row, column] = bad
    batch = dataclasses.replace(batch, advantages=spoilt)
  else:
    spoilt = parameters()['embedding'].copy()
    spoilt[3, 3] = bad
    params = before.trainable | {'embedding': spoilt}
    before = dataclasses.replace(before, trainable=params)
  after, metrics = update((8,), micro_batches, batch, before)
  assert metrics['skipped'] == 1.0
  assert after.step == before.step + 1
  for name in ('trainable', 'opt_state', 'token_state', 'last_update'):
    assert_same_bits(getattr(after, name), getattr(before, name))
  if location == 'advantages':
    # The next update starts from the same state.
    expected_state = dataclasses.replace(before, step=before.step + 1)
    actual, expected = (
      update((8,), micro_batches, padded_batch(), state)
      for state in (after, expected_state)
    )
    assert actual[1]['skipped'] == 0.0
    assert_same_bits(actual, expected)


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_skips_updates_whose_chain_detaches_tokens_that_are_not_finite(bad):
  """Forking tokens detach tokens without a rank, so that gradients are finite."""
  before, batch = (
    fresh_state('forking_tokens', forking_fraction=0.2),
    padded_batch(),
  )
  advantages = batch.advantages.copy()
  advantages[(batch.sequence_ids == 3) & batch.loss_mask] = bad
  batch = dataclasses.replace(batch, advantages=advantages)
  after, metrics = update((8,), 1, batch, before, chain='forking_tokens')
  assert np.isfinite(metrics['gradient_norm'])
  assert not np.isfinite(metrics['loss'])
  assert metrics['skipped'] == 1.0
  assert_same_bits(after.trainable, before.trainable)
  _, metrics = update((8,), 1, padded_batch(), before, chain='forking_tokens')
  assert metrics['skipped'] == 0.0
