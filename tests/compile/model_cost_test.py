# SPDX-License-Identifier: Apache-2.0
"""Model FLOPs against the parameters of the policy."""

import dataclasses
import math

import jax
import pytest

from covrl.compile import model_cost
from covrl.models import Experts, Lora, Policy, tiny
from covrl.rollout import Caching

TINY = tiny(16)


def matrix_parameters(config):
  """Returns the number of parameters in the matrices of a layer."""
  policy = Policy(config)
  layers = policy.abstract_params()['layers']
  sizes = [
    math.prod(leaf.shape[1:])
    for leaf in jax.tree.leaves(layers)
    if leaf.ndim > 2
  ]
  return sum(sizes)


def test_layer_parameters_include_every_matrix():
  assert model_cost.layer_parameters(TINY) == matrix_parameters(TINY)


@pytest.mark.parametrize('per_token', [1, 3])
def test_layer_parameters_count_the_experts_of_one_token(per_token):
  experts = Experts(count=4, per_token=per_token)
  config = dataclasses.replace(TINY, experts=experts)
  unused = 3 * config.model_dim * config.hidden_dim * (4 - per_token)
  assert (
    model_cost.layer_parameters(config) == matrix_parameters(config) - unused
  )


def test_attention_flops_count_visible_pairs():
  # Three tokens see 1, 2 and 3; two layers, four heads of eight; q·k and s·v.
  assert model_cost.attention_flops(TINY, 3) == 2 * (1 + 2 + 3) * 4 * 8 * 2 * 2


def test_frozen_matrices_have_no_weight_gradient():
  lora = dataclasses.replace(TINY, lora=Lora(rank=2, alpha=4.0))
  saved_flops = model_cost.update_flops(TINY, 2, 8) - model_cost.update_flops(
    lora, 2, 8
  )
  products = 2 * model_cost.layer_parameters(TINY) + 32 * 16
  assert saved_flops == 2 * 16 * products


def test_decode_flops_grow_with_the_attended_tokens():
  flops = model_cost.decode_flops(TINY, 3, 10)
  assert model_cost.decode_flops(TINY, 3, 11) - flops == 3 * 2 * 4 * 4 * 8


def test_cache_bytes_equal_those_of_the_arrays_of_the_sampler():
  """The bytes of the arrays that the sampler allocates."""
  config = dataclasses.replace(TINY, windows=(6, 3), dtype='bfloat16')
  policy, prompt, response = Policy(config), 5, 9
  params = jax.eval_shape(policy.init, jax.random.key(0))
  for int8 in (False, True):
    caching = Caching(int8=int8)

    def make(params, caching=caching):
      prompts = caching.empty_prompts(policy, params, (4, prompt))
      return caching.empty_cache(policy, prompts, 4, response)

    cache = jax.eval_shape(make, params)
    assert cache.ring is not None
    leaves = [leaf for leaf in jax.tree.leaves(cache) if leaf.ndim >= 4]
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    actual = model_cost.cache_bytes(config, 4, prompt, response, int8=int8)
    assert actual == size
