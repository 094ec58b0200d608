# SPDX-License-Identifier: Apache-2.0
"""A model's own operations, against its parameters."""

import dataclasses
import math

import jax
import pytest

from covrl.compile import flops
from covrl.models import Experts, Lora, Policy, tiny

TINY = tiny(16)


def matrices(config):
  """Numbers of a layer's parameters that are multiplied."""
  policy = Policy(config)
  layers = policy.abstract_params()['layers']
  sizes = [
    math.prod(leaf.shape[1:])
    for leaf in jax.tree.leaves(layers)
    if leaf.ndim > 2
  ]
  return sum(sizes)


def test_every_matrix_is_met():
  assert flops.layer_parameters(TINY) == matrices(TINY)


@pytest.mark.parametrize('per_token', [1, 3])
def test_a_token_meets_its_experts_and_the_router(per_token):
  experts = Experts(count=4, per_token=per_token)
  config = dataclasses.replace(TINY, experts=experts)
  elsewhere = 3 * config.model_dim * config.hidden_dim * (4 - per_token)
  assert flops.layer_parameters(config) == matrices(config) - elsewhere


def test_attention_by_hand():
  # Three tokens see 1, 2 and 3; two layers, four heads of eight; q·k and s·v.
  assert flops.attention(TINY, 3) == 2 * (1 + 2 + 3) * 4 * 8 * 2 * 2


def test_what_stays_has_no_derivative():
  lora = dataclasses.replace(TINY, lora=Lora(rank=2, alpha=4.0))
  spared = flops.of_update(TINY, 2, 8) - flops.of_update(lora, 2, 8)
  products = 2 * flops.layer_parameters(TINY) + 32 * 16
  assert spared == 2 * 16 * products


def test_a_token_reads_what_came_before():
  one = flops.of_token(TINY, 3, 10)
  assert flops.of_token(TINY, 3, 11) - one == 3 * 2 * 4 * 4 * 8
