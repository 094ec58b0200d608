# SPDX-License-Identifier: Apache-2.0
"""Trained parameters that small updates do not change are reported."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from train.process import RECIPES

from covrl.config import load
from covrl.models import Lora, Policy, tiny
from covrl.train.warnings.precision import precision_warnings

CONFIG = load(
  str(RECIPES / 'toy_kl_cov.py'), ['--config.warm_start.steps=0']
).config


@pytest.mark.parametrize(
  ('dtype', 'smallest'), [('bfloat16', 1 / 256), ('float16', 1 / 2048)]
)
def test_trained_parameters_of_16_bits_are_reported(dtype, smallest):
  model = dataclasses.replace(tiny(8), dtype='bfloat16', param_dtype=dtype)
  (warning,) = precision_warnings(CONFIG, Policy(model))
  assert warning.startswith(
    f'parameters of {dtype} are trained: updates of less than'
    f' 1/{round(1 / smallest)} of a parameter are rounded away'
  )
  # The number is that of the type's arithmetic.
  one = jnp.ones((), dtype)
  for share, changes in ((0.9, False), (1.1, True)):
    changed = optax.apply_updates(one, jnp.asarray(share * smallest, dtype))
    assert (changed != one) == changes


def test_parameters_of_32_bits_and_frozen_ones_are_not_reported():
  model = dataclasses.replace(tiny(8), dtype='bfloat16', param_dtype='float32')
  assert not [*precision_warnings(CONFIG, Policy(model))]
  frozen = dataclasses.replace(
    model,
    param_dtype='bfloat16',
    lora=Lora(rank=2, alpha=4.0, targets=('query',)),
  )
  policy = Policy(frozen)
  adapters, _ = policy.split(policy.abstract_params())
  assert {x.dtype for x in jax.tree.leaves(adapters)} == {np.dtype('float32')}
  assert not [*precision_warnings(CONFIG, policy)]
  # The warm start trains the others, too.
  config = load(str(RECIPES / 'toy_kl_cov.py')).config
  assert config.warm_start.steps
  assert [*precision_warnings(config, policy)]
