# SPDX-License-Identifier: Apache-2.0
"""Value head: shape, sharding, alignment with the state before a token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covrl.models import Lora, Policy, add_value_head, tiny, value_config
from covrl.parallel.sharding import make_mesh

UNTIED = dataclasses.replace(tiny(16), tied_embeddings=False)
CRITIC = Policy(value_config(UNTIED))


def with_random_head(params):
  rng = np.random.default_rng(0)
  weight = jnp.asarray(rng.normal(size=32), jnp.float32)
  return params | {'value_head': {'weight': weight, 'bias': jnp.float32(0.5)}}


@jax.jit
def values(params, tokens):
  shape = tokens.shape
  hidden = CRITIC.hidden(
    params,
    tokens,
    positions=jnp.broadcast_to(jnp.arange(shape[1]), shape),
    segment_ids=jnp.ones(shape, jnp.int32),
  )
  return CRITIC.values(params, hidden), hidden


def test_values_are_a_linear_map_of_the_state_before_the_token():
  params = with_random_head(CRITIC.init(jax.random.key(0)))
  tokens = jnp.asarray(np.random.default_rng(1).integers(0, 16, (2, 6)))
  actual, hidden = values(params, tokens)
  expected = (
    np.asarray(hidden) @ np.asarray(params['value_head']['weight']) + 0.5
  )
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
  # The value at t does not depend on the tokens after it.
  changed, _ = values(params, tokens.at[:, 4:].set(3))
  np.testing.assert_array_equal(actual[:, :4], changed[:, :4])
  assert np.abs(actual[:, 4:] - changed[:, 4:]).max() > 1e-3


@pytest.mark.parametrize('shape', [(8,), (2, 2, 2)])
def test_a_language_model_becomes_a_critic(shape):
  mesh = make_mesh(shape)
  language_model = Policy(UNTIED).init(jax.random.key(0), mesh)
  params = add_value_head(language_model, CRITIC.config)
  abstract = CRITIC.abstract_params(mesh)
  assert jax.tree.structure(params) == jax.tree.structure(abstract)
  for leaf, described in zip(
    *map(jax.tree.leaves, (params, abstract)), strict=True
  ):
    assert (leaf.shape, leaf.dtype) == (described.shape, described.dtype)
  assert 'head' in language_model
  assert 'head' not in params
  assert params['layers'] is language_model['layers']
  assert not any(leaf.any() for leaf in params['value_head'].values())
  weight = abstract['value_head']['weight']
  assert weight.sharding.shard_shape((32,))[0] == 32 // mesh.shape['fsdp']


def test_a_critic_has_no_adapters():
  adapted = dataclasses.replace(tiny(16), lora=Lora(rank=2, alpha=2.0))
  assert value_config(adapted).lora is None
  assert value_config(adapted).value_head


def test_a_fresh_critic_has_the_layers_of_a_fresh_language_model():
  fresh = CRITIC.init(jax.random.key(3))
  language_model = Policy(UNTIED).init(jax.random.key(3))
  jax.tree.map(
    np.testing.assert_array_equal, fresh['layers'], language_model['layers']
  )
