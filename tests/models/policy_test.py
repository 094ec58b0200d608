# SPDX-License-Identifier: Apache-2.0
"""The policy's parameters: the same on every mesh, in every dtype's reach."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covrl.models import Policy, countdown, tiny
from covrl.sharding import make_mesh, shard_batch

POLICY = Policy(tiny(16))
PARAMS = POLICY.init(jax.random.key(0))
LOGITS = jax.jit(POLICY.logits)
MESHES = [(8,), (1, 8), (4, 2), (2, 2, 2)]


def draw_tokens(*shape):
  tokens = np.random.default_rng(1).integers(0, 16, shape)
  return jnp.asarray(tokens, jnp.int32)


def assert_trees_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize('shape', MESHES)
def test_parameters_and_logits_are_the_same_on_every_mesh(shape):
  mesh = make_mesh(shape)
  params = POLICY.init(jax.random.key(0), mesh)
  assert_trees_equal(params, PARAMS)
  tokens = draw_tokens(8, 6)
  want = LOGITS(PARAMS, tokens)
  with jax.set_mesh(mesh):
    got = LOGITS(params, shard_batch(tokens, mesh))
  np.testing.assert_allclose(got, want, atol=1e-5)
  assert got.sharding.shard_shape(got.shape)[0] == 8 // (
    mesh.shape['data'] * mesh.shape['fsdp']
  )


def test_parameters_are_created_in_pieces():
  mesh = make_mesh((2, 2, 2))
  params = POLICY.init(jax.random.key(0), mesh)
  abstract = POLICY.abstract_params(mesh)
  jax.tree.map(
    lambda leaf, want: (
      np.testing.assert_equal(leaf.sharding, want.sharding),
      np.testing.assert_equal(
        (leaf.shape, leaf.dtype), (want.shape, want.dtype)
      ),
    ),
    params,
    abstract,
  )
  gate = params['layers']['mlp']['gate']
  assert gate.sharding.shard_shape(gate.shape) == (2, 16, 32)


def test_axes_that_do_not_divide_are_left_whole():
  mesh = make_mesh((1, 1, 8))
  params = POLICY.init(jax.random.key(0), mesh)
  query = params['layers']['attention']['query']
  assert query.sharding.shard_shape(query.shape) == query.shape
  assert_trees_equal(params, PARAMS)


def test_another_key_is_another_policy():
  other = POLICY.init(jax.random.key(1))
  assert not np.array_equal(other['embedding'], PARAMS['embedding'])


def test_parameters_are_counted():
  leaves = jax.tree.leaves(PARAMS)
  assert POLICY.num_params == sum(leaf.size for leaf in leaves)
  assert 8e5 < Policy(countdown(64)).num_params < 1.2e6


def test_a_policy_is_its_config():
  assert Policy(tiny(16)) == POLICY
  assert hash(Policy(tiny(16))) == hash(POLICY)
  assert Policy(tiny(16)).graphdef == POLICY.graphdef


def test_first_logits_have_unit_scale():
  logits = LOGITS(PARAMS, draw_tokens(4, 8))
  assert logits.dtype == jnp.float32
  assert 0.5 < float(jnp.std(logits)) < 2.0


def test_untied_policies_have_a_head_of_their_own():
  policy = Policy(dataclasses.replace(tiny(16), tied_embeddings=False))
  params = policy.init(jax.random.key(0))
  np.testing.assert_array_equal(policy.unembedding(params), params['head'])
  np.testing.assert_array_equal(
    POLICY.unembedding(PARAMS), PARAMS['embedding'].T
  )


def test_bfloat16_activations_over_float32_parameters():
  policy = Policy(dataclasses.replace(tiny(16), dtype='bfloat16'))
  params = policy.init(jax.random.key(0))
  assert_trees_equal(params, PARAMS)
  tokens = draw_tokens(4, 8)
  score = jax.jit(policy.logits)
  logits = score(params, tokens)
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, LOGITS(PARAMS, tokens), atol=0.2)
  once = policy.compute_params(params)
  assert once['layers']['mlp']['gate'].dtype == jnp.bfloat16
  assert once['final_norm']['scale'].dtype == jnp.float32
  np.testing.assert_array_equal(score(once, tokens), logits)


def test_float64_stays_float64(x64):
  config = dataclasses.replace(tiny(16), dtype='float64', param_dtype='float64')
  policy = Policy(config)
  params = policy.init(jax.random.key(0))
  assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(params))
  logits = jax.eval_shape(policy.logits, params, draw_tokens(2, 4))
  assert logits.dtype == jnp.float64


def test_a_cache_too_short_is_refused():
  tokens = draw_tokens(2, 4)
  with pytest.raises(ValueError, match=r'cache_length .* got 3 for 4 tokens'):
    POLICY.prefill(PARAMS, tokens, tokens, tokens > 0, 3)
