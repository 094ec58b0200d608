# SPDX-License-Identifier: Apache-2.0
"""Checks of model configurations, and their dtypes."""

import dataclasses

import jax.numpy as jnp
import pytest

from covrl.models import countdown, tiny


@pytest.mark.parametrize(
  ('change', 'sentence'),
  [
    ({'vocab_size': 0}, 'vocab_size must be at least 1, got 0'),
    ({'num_layers': -1}, 'num_layers must be at least 1, got -1'),
    ({'num_kv_heads': 3}, 'num_heads must be a multiple .* got 4 and 3'),
    ({'head_dim': 7}, 'head_dim must be even .* got 7'),
    ({'norm_eps': 0.0}, 'norm_eps must be positive, got 0.0'),
    ({'rope_theta': -1.0}, 'rope_theta must be positive, got -1.0'),
    ({'dtype': jnp.int8}, 'dtype must be one of .* got'),
    ({'dtype': 'int8'}, "dtype must be one of .* got 'int8'"),
    ({'param_dtype': 'f32'}, "param_dtype must be one of .* got 'f32'"),
  ],
)
def test_refuses_invalid_values(change, sentence):
  with pytest.raises(ValueError, match=sentence):
    dataclasses.replace(tiny(16), **change)


def test_equal_configs_are_equal_and_hash_alike():
  assert len({tiny(16), tiny(16), tiny(17), countdown(16)}) == 3


@pytest.mark.parametrize(
  'dtype', ['bfloat16', jnp.bfloat16, jnp.dtype('bfloat16')]
)
def test_dtypes_are_given_as_jnp_dtype_takes_them(dtype):
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
