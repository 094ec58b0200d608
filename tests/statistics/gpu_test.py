# SPDX-License-Identifier: Apache-2.0
"""The chunked implementation lowered for GPUs; no GPU is needed."""

import jax
import jax.numpy as jnp
import pytest

from covrl.statistics import token_stats

GPU = jax.sharding.AbstractMesh(
  (1,),
  ('data',),
  abstract_device=jax.sharding.AbstractDevice('NVIDIA H100', None, 'gpu'),
)


def product_types(dtype):
  """Types of the factors of the matrix products of a gradient, as text."""

  def loss(hidden, unembedding):
    targets = jnp.zeros((2, 4), int)
    stats = token_stats(hidden, unembedding, targets, chunk_size=16)
    return jnp.sum(stats.logprobs)

  arrays = [jax.ShapeDtypeStruct(s, dtype) for s in ((2, 4, 8), (8, 32))]
  traced = jax.jit(jax.grad(loss, (0, 1))).trace(*arrays)
  text = traced.lower(lowering_platforms=('cuda',)).as_text()
  lines = [line for line in text.splitlines() if 'dot_general' in line]
  return [line.split(' : ')[1].split(') ->')[0] for line in lines]


@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
def test_products_of_gradients_are_in_the_type_of_the_factors(dtype):
  """On GPUs, mixed factors would be multiplied in TF32, at half the rate."""
  with jax.sharding.use_abstract_mesh(GPU):
    types = product_types(dtype)
  assert len(types) == 4
  mlir_dtype = {'bfloat16': 'bf16', 'float32': 'f32'}[dtype]
  for factor_types in types:
    assert factor_types.count(f'x{mlir_dtype}>') == 2, factor_types
