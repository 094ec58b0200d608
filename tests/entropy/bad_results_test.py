# SPDX-License-Identifier: Apache-2.0
"""Losses' results and selections' arguments of a wrong shape or type are refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import covrl

pytestmark = pytest.mark.usefixtures('no_annotation_checks')

SHAPE = (4, 10)
ONES = jnp.ones(SHAPE, bool)
WEIGHTS = jnp.ones(SHAPE) / 40
STATS = covrl.TokenStats(logprobs=-jnp.ones(SHAPE), entropy=jnp.ones(SHAPE))


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    (
      {'log_ratio': None},
      'log_ratio of the loss of as_loss must be an array of',
    ),
    (
      {'log_ratio': jnp.ones(10)},
      r'log_ratio of .* must be \[B, T\] = \(4, 10\), got \(10,\)',
    ),
    ({'score_weight': ONES}, 'score_weight of .* array of numbers, got bool'),
    ({'clipped': WEIGHTS}, 'clipped of .* must be an array of bools'),
  ],
)
def test_entries_of_a_loss_aux_of_a_wrong_shape_or_type_are_refused(
  changed, message
):
  def loss(stats, **context):
    value, aux = covrl.policy_gradient(stats, **context)
    return value, aux._replace(**changed)

  chain = covrl.entropy_bonus(0.1)
  with pytest.raises((TypeError, ValueError), match=message):
    covrl.as_loss(loss, chain)(
      STATS,
      chain.init(STATS.template()),
      advantages=WEIGHTS,
      old_logprobs=STATS.logprobs,
      weights=WEIGHTS,
    )


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'step': 1.5}, 'step must be an array of integers, got 1.5'),
    ({'step': -1}, 'step must be finite and at least 0, got -1'),
    ({'key': 0}, 'key must be a PRNG key, such as'),
    (
      {'eligible': np.ma.masked_array(ONES, True)},
      'eligible must be an array of bools, got a masked array',
    ),
  ],
)
def test_arguments_of_random_selections_are_checked(arguments, message):
  valid_arguments: dict[str, Any] = {
    'eligible': ONES,
    'key': jax.random.key(0),
    'step': 0,
  }
  with pytest.raises((TypeError, ValueError), match=message):
    covrl.select_random(**valid_arguments | arguments, fraction=0.1)
