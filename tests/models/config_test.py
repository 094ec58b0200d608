# SPDX-License-Identifier: Apache-2.0
"""Checks of model configurations, and their dtypes."""

import dataclasses
import math

import jax.numpy as jnp
import pytest

from covrl.models import (
  Experts,
  LinearScaling,
  Llama3Scaling,
  Lora,
  YarnScaling,
  countdown,
  tiny,
)


@pytest.mark.usefixtures('no_annotation_checks')
@pytest.mark.parametrize(
  ('change', 'sentence'),
  [
    ({'vocab_size': 0}, 'vocab_size must be at least 1, got 0'),
    ({'num_layers': -1}, 'num_layers must be at least 1, got -1'),
    ({'num_kv_heads': 3}, 'num_heads must be a multiple .* got 4 and 3'),
    ({'head_dim': 7}, 'head_dim must be even .* got 7'),
    ({'norm_eps': 0.0}, 'norm_eps must be positive, got 0'),
    ({'rope_theta': -1.0}, 'rope_theta must be positive, got -1'),
    ({'dtype': jnp.int8}, 'dtype must be one of .* got'),
    ({'dtype': 'int8'}, "dtype must be one of .* got 'int8'"),
    ({'param_dtype': 'f32'}, "param_dtype must be one of .* got 'f32'"),
    ({'num_layers': 2.0}, 'num_layers must be an integer, got 2.0'),
    ({'windows': (1.5, 2)}, 'windows must be an integer, got 1.5'),
    ({'windows': (-1, 2)}, 'windows must be at least 0, got -1'),
    ({'attention_scale': math.inf}, 'attention_scale must be finite, got inf'),
    ({'tied_embeddings': 'false'}, "tied_embeddings must be true .* 'false'"),
    ({'rope_scaling': 'linear'}, "rope_scaling must be a scaling .* 'linear'"),
    ({'experts': {'count': 2}}, "experts must be an Experts .* {'count': 2}"),
  ],
)
def test_refuses_invalid_values(change, sentence):
  with pytest.raises((TypeError, ValueError), match=sentence):
    dataclasses.replace(tiny(16), **change)


@pytest.mark.usefixtures('no_annotation_checks')
@pytest.mark.parametrize(
  ('make', 'sentence'),
  [
    (lambda: LinearScaling(factor=-2.0), 'factor must be positive, got -2'),
    (lambda: LinearScaling(factor=math.nan), 'factor must be .*, got nan'),
    (
      lambda: Llama3Scaling(factor=8.0, original_length=16, low=4.0, high=1.0),
      'low must be below high, got 4 and 1',
    ),
    (
      lambda: Llama3Scaling(factor=8.0, original_length=0),
      'original_length must be at least 1, got 0',
    ),
    (
      lambda: YarnScaling(factor=8.0, original_length=16, fast=1.0, slow=32.0),
      'slow must be below fast, got 32 and 1',
    ),
    (
      lambda: YarnScaling(factor=8.0, original_length=16, attention_factor=0.0),
      'attention_factor must be positive, got 0',
    ),
    (
      lambda: Experts(count=4, per_token=True),
      'per_token of experts must be an integer, got True',
    ),
    (
      lambda: Lora(rank=2, alpha=math.inf),
      'the alpha of adapters must be finite, got inf',
    ),
    (
      lambda: Lora(rank=2, alpha=1.0, targets=('query', 'query')),
      'a tuple of some of .*, each once',
    ),
  ],
)
def test_refuses_invalid_options(make, sentence):
  with pytest.raises((TypeError, ValueError), match=sentence):
    make()


def test_equal_configs_are_equal_and_hash_alike():
  assert len({tiny(16), tiny(16), tiny(17), countdown(16)}) == 3


@pytest.mark.parametrize(
  'dtype', ['bfloat16', jnp.bfloat16, jnp.dtype('bfloat16')]
)
def test_every_form_of_a_dtype_gives_the_same_config(dtype):
  config = dataclasses.replace(tiny(16), dtype=dtype, param_dtype=dtype)
  named = dataclasses.replace(
    tiny(16), dtype='bfloat16', param_dtype='bfloat16'
  )
  assert config.dtype == config.param_dtype == 'bfloat16'
  assert (config, hash(config)) == (named, hash(named))


def test_statistics_are_never_narrower_than_float32():
  for dtype, wide in [('bfloat16', 'float32'), ('float64', 'float64')]:
    config = dataclasses.replace(tiny(16), dtype=dtype)
    assert config.stats_dtype == jnp.dtype(wide)
