# SPDX-License-Identifier: Apache-2.0
"""Policy: parameters on meshes, sizes, dtypes, unembedding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covrl.models import Policy, countdown, tiny
from covrl.parallel.sharding import make_mesh, shard_batch

POLICY = Policy(tiny(16))
PARAMS = POLICY.init(jax.random.key(0))
LOGITS = jax.jit(POLICY.logits)
MESHES = [(8,), (4, 2), (2, 2, 2)]


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
  abstract = POLICY.abstract_params(mesh)
  for leaf, described in zip(
    *map(jax.tree.leaves, (params, abstract)), strict=True
  ):
    assert (leaf.shape, leaf.dtype) == (described.shape, described.dtype)
    assert leaf.sharding == described.sharding

  tokens = draw_tokens(8, 6)
  with jax.set_mesh(mesh):
    logits = LOGITS(params, shard_batch(tokens, mesh))
  np.testing.assert_allclose(logits, LOGITS(PARAMS, tokens), atol=1e-5)
  rows = logits.sharding.shard_shape(logits.shape)[0]
  assert rows * mesh.shape['data'] * mesh.shape['fsdp'] == 8


def shard_shape(mesh_shape, *path):
  leaf = POLICY.abstract_params(make_mesh(mesh_shape))
  for name in path:
    leaf = leaf[name]
  return leaf.sharding.shard_shape(leaf.shape)


def test_matrices_are_split_over_fsdp_and_tensor():
  gate = ('layers', 'mlp', 'gate')
  assert shard_shape((8,), *gate) == (2, 32, 64)
  assert shard_shape((1, 8), *gate) == (2, 4, 64)
  assert shard_shape((2, 2, 2), *gate) == (2, 16, 32)
  assert shard_shape((2, 2, 2), 'embedding') == (8, 16)


def test_axes_that_the_mesh_does_not_divide_are_not_split():
  key = ('layers', 'attention', 'key')
  assert shard_shape((1, 4, 2), *key) == (2, 8, 1, 8)
  assert shard_shape((1, 2, 4), *key) == (2, 16, 2, 8)


def test_parameters_depend_on_the_key():
  other = POLICY.init(jax.random.key(1))
  assert not np.array_equal(other['embedding'], PARAMS['embedding'])


def test_number_of_parameters_is_the_sum_of_their_sizes():
  leaves = jax.tree.leaves(PARAMS)
  assert POLICY.num_params == sum(leaf.size for leaf in leaves)
  assert 8e5 < Policy(countdown(64)).num_params < 1.2e6


def test_policies_with_equal_configs_are_equal():
  assert Policy(tiny(16)) == POLICY
  assert hash(Policy(tiny(16))) == hash(POLICY)
  assert Policy(tiny(16)).graphdef == POLICY.graphdef


def test_initial_logits_have_unit_scale():
  logits = LOGITS(PARAMS, draw_tokens(4, 8))
  assert logits.dtype == jnp.float32
  assert 0.5 < float(jnp.std(logits)) < 2.0


def test_unembedding_is_tied_or_separate():
  table = POLICY.unembedding(PARAMS)
  np.testing.assert_array_equal(table, PARAMS['embedding'].T)
  untied = Policy(dataclasses.replace(tiny(16), tied_embeddings=False))
  assert untied.abstract_params()['head'].shape == (32, 16)
  params = PARAMS | {'head': 2 * table}
  np.testing.assert_array_equal(untied.unembedding(params), 2 * table)
  tokens = draw_tokens(2, 4)
  np.testing.assert_allclose(
    jax.jit(untied.logits)(params, tokens),
    2 * LOGITS(PARAMS, tokens),
    rtol=1e-5,
  )


def test_bfloat16_activations_give_float32_logits():
  policy = Policy(dataclasses.replace(tiny(16), dtype='bfloat16'))
  tokens, score = draw_tokens(4, 8), jax.jit(policy.logits)
  logits = score(PARAMS, tokens)
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, LOGITS(PARAMS, tokens), atol=0.2)
  once = policy.cast_params(PARAMS)
  assert once['layers']['mlp']['gate'].dtype == jnp.bfloat16
  assert once['final_norm']['scale'].dtype == jnp.float32
  np.testing.assert_array_equal(score(once, tokens), logits)


def test_float64_stays_float64(x64):
  config = dataclasses.replace(tiny(16), dtype='float64', param_dtype='float64')
  policy = Policy(config)
  params = jax.eval_shape(policy.init, jax.random.key(0))
  assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(params))
  logits = jax.eval_shape(policy.logits, params, draw_tokens(2, 4))
  assert logits.dtype == jnp.float64
