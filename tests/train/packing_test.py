# SPDX-License-Identifier: Apache-2.0
"""Packed rows give the same update with fewer rows, if they fit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train import toy
from train.updates import PROMPT, RESPONSE, SEQUENCES, padded_batch, parameters

from covrl.config import ConfigError, check
from covrl.data.packing import prompt_width
from covrl.models import Policy, tiny
from covrl.parallel import sharding
from covrl.train.algorithm import Algorithm
from covrl.train.compiled import CompiledPrograms

WIDTH = prompt_width(toy.get_config().rollout.max_prompt_length) + RESPONSE


def programs(packed_rows):
  """Compiled programs of the toy recipe with a number of packed rows."""
  config = toy.get_config()
  config.rollout.temperature = 0.8
  config.rollout.prompts_per_iteration = SEQUENCES // 4
  config.train.sequences_per_update = SEQUENCES
  config.train.micro_batches = 2
  config.train.packed_rows = packed_rows
  config.entropy.selection_source = 'current'
  check(config)
  algorithm = Algorithm(
    loss=toy.make_loss(config),
    token_tx=toy.make_token_tx(config),
    tx=toy.make_tx(config),
    advantages=toy.make_advantages(config),
  )
  mesh = sharding.make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2})
  return CompiledPrograms(Policy(tiny(16)), algorithm, config, mesh)


def rows():
  """Rows as wide as a prompt and a response, like those of a rollout."""
  row_padding = ((0, 0), (WIDTH - PROMPT - RESPONSE, 0))
  return jax.tree.map(
    lambda leaf: np.pad(leaf[:, : PROMPT + RESPONSE], row_padding),
    padded_batch(),
  )


@pytest.fixture(scope='module')
def packed_and_unpacked():
  """Programs with and without packing."""
  return programs(48), programs(0)


def update(compiled, batch):
  """Parameters and metrics after an update."""
  state, metrics = compiled.update(
    compiled.init_state(parameters()), batch, first=False, key=jax.random.key(3)
  )
  return jax.device_get((state.trainable, metrics))


def test_packed_rows_give_the_same_update(packed_and_unpacked):
  batch = rows()
  num_tokens = np.count_nonzero(batch.segment_ids)
  assert num_tokens < 48 * WIDTH < SEQUENCES * WIDTH
  (updated, metrics), (expected, expected_metrics) = (
    update(compiled, batch) for compiled in packed_and_unpacked
  )
  assert metrics['selected'] == expected_metrics['selected'] > 0
  assert metrics['tokens'] == expected_metrics['tokens']
  assert metrics['packed'] == 1
  assert 'packed' not in expected_metrics
  for name, value in expected_metrics.items():
    np.testing.assert_allclose(
      metrics[name], value, rtol=1e-4, atol=1e-5, err_msg=name
    )
  for actual_leaf, expected_leaf in zip(
    *map(jax.tree.leaves, (updated, expected)), strict=True
  ):
    np.testing.assert_allclose(actual_leaf, expected_leaf, rtol=0, atol=2e-5)


def test_rows_that_do_not_fit_are_not_packed(packed_and_unpacked):
  # Full rows: as many as there are sequences.
  batch = rows()
  full_batch = dataclasses.replace(
    batch,
    segment_ids=np.ones_like(batch.segment_ids),
    positions=np.broadcast_to(np.arange(WIDTH), batch.positions.shape),
  )
  (updated, metrics), (expected, expected_metrics) = (
    update(compiled, full_batch) for compiled in packed_and_unpacked
  )
  assert metrics.pop('packed') == 0
  # Metrics of no tokens are NaN in both.
  np.testing.assert_equal(metrics, expected_metrics)
  assert jax.tree.all(
    jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), updated, expected)
  )


@pytest.mark.parametrize(
  ('packed', 'sentence'),
  [
    (7, 'train.packed_rows must be a multiple of train.micro_batches'),
    (66, 'must be at most train.sequences_per_update, got 66 of 64'),
    (-2, 'train.packed_rows must be at least 0, got -2'),
  ],
)
def test_refuses_invalid_numbers_of_packed_rows(packed, sentence):
  with pytest.raises(ConfigError, match=sentence):
    programs(packed)


def test_refuses_tokens_of_the_loss_in_prompts(packed_and_unpacked):
  batch = rows()
  mask = batch.loss_mask.copy()
  mask[2, 1] = True
  batch = dataclasses.replace(batch, loss_mask=mask)
  for compiled in packed_and_unpacked:
    with pytest.raises(ValueError, match=r'first 7 columns.* got 1 true'):
      update(compiled, batch)
