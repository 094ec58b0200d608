# SPDX-License-Identifier: Apache-2.0
"""Refusal of parameters, token ids and experts that do not fit the model."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from covrl.models import Experts, Lora, Policy, tiny
from covrl.models.input_checks import check_recorded_experts, check_rows

CONFIG = tiny(16)
POLICY = Policy(CONFIG)
PARAMS = POLICY.init(jax.random.key(0))
TOKENS = jnp.arange(6, dtype=jnp.int32).reshape(2, 3)
ONES = jnp.ones_like(TOKENS)
ROUTED = Policy(
  dataclasses.replace(CONFIG, experts=Experts(count=4, per_token=2))
)
RECORD = jnp.tile(jnp.array([1, 3], jnp.uint8), (2, 3, CONFIG.num_layers, 1))


def params_of_config(**changes):
  config = dataclasses.replace(CONFIG, **changes)
  return Policy(config).init(jax.random.key(0))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    # Without the check, most of these would run.
    ({'num_layers': 1}, r'layers\.\S+ \(2, .*, got \(1, '),
    ({'num_layers': 3}, r'layers\.\S+ \(2, .*, got \(3, '),
    ({'hidden_dim': 32}, r'layers.mlp.down \(2, 64, 32\), got \(2, 32, 32\)'),
    ({'num_heads': 2}, r'layers.attention.output \(2, 4, 8, 32\), got'),
    ({'vocab_size': 8}, r'embedding \(16, 32\), got \(8, 32\)'),
    ({'vocab_size': 32}, r'embedding \(16, 32\), got \(32, 32\)'),
    ({'tied_embeddings': False}, 'head absent, got'),
    ({'lora': Lora(rank=2, alpha=2.0)}, 'key_adapter.a absent, got'),
  ],
)
def test_parameters_of_another_config_are_refused(changes, message):
  params = params_of_config(**changes)
  for function in (POLICY.logits, jax.jit(POLICY.logits)):
    with pytest.raises(ValueError, match=message):
      function(params, TOKENS)


def test_missing_parameters_are_refused():
  params = {name: leaf for name, leaf in PARAMS.items() if name != 'embedding'}
  with pytest.raises(ValueError, match=r'embedding \(16, 32\), got none'):
    POLICY.logits(params, TOKENS)


def test_parameters_of_integers_are_refused():
  params = jax.tree.map(lambda leaf: leaf.astype(jnp.int8), PARAMS)
  with pytest.raises(TypeError, match='embedding must be an array of floats'):
    POLICY.logits(params, TOKENS)


def test_unembedding_of_another_vocabulary_is_refused():
  hidden = jnp.zeros((1, CONFIG.model_dim))
  with pytest.raises(ValueError, match=r'embedding \(16, 32\), got \(8'):
    POLICY.project(params_of_config(vocab_size=8), hidden)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'tokens': TOKENS + 11}, r'token ids must be in \[0, 16\), got 16'),
    ({'tokens': TOKENS - 1}, r'token ids must be in \[0, 16\), got -1'),
    ({'tokens': TOKENS / 2}, 'tokens must be an array of integers'),
    ({'tokens': TOKENS[0]}, r'tokens must be \[B, T\], got \(3,\)'),
    ({'positions': TOKENS[:1]}, r'positions must be \[B, T\] = \(2, 3\)'),
    ({'positions': TOKENS - 1}, 'positions must be at least 0, got -1'),
    ({'segment_ids': -ONES}, 'segment_ids must be at least 0, got -1'),
    ({'segment_ids': ONES > 0}, 'segment_ids must be an array of integers'),
  ],
)
def test_rows_that_would_be_clamped_or_broadcast_are_refused(changes, message):
  rows = {'tokens': TOKENS, 'positions': TOKENS, 'segment_ids': ONES} | changes
  with pytest.raises((TypeError, ValueError), match=message):
    check_rows(**rows, vocab_size=16)


def test_policies_refuse_token_ids_without_an_embedding():
  message = r'token ids must be in \[0, 16\), got 16'
  with pytest.raises(ValueError, match=message):
    POLICY.logits(PARAMS, TOKENS + 11)
  with pytest.raises(ValueError, match=message):
    POLICY.prefill(PARAMS, TOKENS + 11, TOKENS, ONES > 0)


@pytest.mark.parametrize(
  ('record', 'message'),
  [
    (RECORD + 2, r'recorded_experts must be in \[0, 5\), got 5'),
    (jnp.full_like(RECORD, 3), 'different experts for a token, got 3 twice'),
    (
      RECORD[..., :1],
      r'recorded_experts must be \[B, T, L, k\] = \(2, 3, 2, 2\)',
    ),
    (
      RECORD.astype(jnp.float32),
      'recorded_experts must be an array of integers',
    ),
  ],
)
def test_records_of_experts_that_no_sampler_returns_are_refused(
  record, message
):
  with pytest.raises((TypeError, ValueError), match=message):
    check_recorded_experts(record, TOKENS, ROUTED.config)


def test_policies_check_records_of_experts():
  params = ROUTED.init(jax.random.key(0))

  def run(record):
    return ROUTED.hidden_and_routing(
      params,
      TOKENS,
      positions=TOKENS,
      segment_ids=ONES,
      recorded_experts=record,
    )

  run(RECORD // 3)  # An entry of 0, not recorded, may occur twice.
  with pytest.raises(ValueError, match='got 3 twice'):
    run(jnp.full_like(RECORD, 3))
