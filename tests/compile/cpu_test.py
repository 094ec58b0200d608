# SPDX-License-Identifier: Apache-2.0
"""Estimates against counts by hand and XLA's own figures, on the CPU back end."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P

from covrl.compile import model_cost
from covrl.compile.cost import cost_of
from covrl.compile.hlo import parse
from covrl.models import Policy, tiny
from covrl.statistics import token_stats


def compiled(function, *arguments):
  """XLA's memory of a compiled program, and costs counted from its text."""
  program = jax.jit(function).lower(*arguments).compile()
  text, memory = program.as_text(), program.memory_analysis()
  assert text is not None
  assert memory is not None
  return memory, cost_of(parse(text, 'gpu'))


@pytest.mark.parametrize(
  'changes',
  [
    {'num_layers': 1, 'model_dim': 64, 'hidden_dim': 256},
    {'num_layers': 3, 'model_dim': 64, 'hidden_dim': 128, 'num_kv_heads': 1},
    {'num_layers': 5, 'model_dim': 128, 'hidden_dim': 512},
  ],
)
def test_operations_of_a_model(changes):
  """Products by hand and those in the program, loops over layers included."""
  config = dataclasses.replace(tiny(512), **changes)
  policy, rows, width = Policy(config), 4, 32

  def score(params, tokens):
    ones = jnp.ones_like(tokens)
    positions = jnp.broadcast_to(jnp.arange(width), tokens.shape)
    hidden = policy.hidden(
      params, tokens, positions=positions, segment_ids=ones
    )
    unembedding = policy.unembedding(params)
    return token_stats(hidden, unembedding, tokens).logprobs

  tokens = jax.ShapeDtypeStruct((rows, width), jnp.int32)
  memory, cost = compiled(score, policy.abstract_params(), tokens)
  by_hand = model_cost.scoring_flops(config, rows, width)
  # All pairs of queries and keys are computed, of which causality allows half.
  pairs = 4 * config.num_heads * config.head_dim * width * (width - 1) / 2
  by_hand += rows * config.num_layers * pairs
  # What is not a product (norms, softmax, rotations) is the rest.
  assert by_hand < cost.flops < 1.25 * by_hand
  sizes = [
    np.prod(x.shape) * 4 for x in jax.tree.leaves(policy.abstract_params())
  ]
  assert memory.argument_size_in_bytes == sum(sizes) + 4 * rows * width
  assert cost.bytes > memory.argument_size_in_bytes


def test_bytes_of_collectives_on_eight_devices():
  mesh = jax.make_mesh((8,), ('fsdp',))
  sharded = jax.NamedSharding(mesh, P('fsdp'))
  x = jax.ShapeDtypeStruct((64, 128), jnp.float32, sharding=sharded)

  def exchange(x):
    gathered = jax.lax.all_gather(x, 'fsdp', tiled=True)
    total = jax.lax.psum(x, 'fsdp')
    part = jax.lax.psum_scatter(gathered, 'fsdp', tiled=True)
    return gathered.sum() + total.sum() + part.sum()

  _, cost = compiled(
    jax.shard_map(
      lambda x: exchange(x)[None],
      mesh=mesh,
      in_specs=P('fsdp'),
      out_specs=P('fsdp'),
    ),
    x,
  )
  sent = {each.kind: each.sent * times for each, times in cost.collectives}
  whole = 4 * 64 * 128
  assert sent['all-gather'] == 7 / 8 * whole
  assert sent['reduce-scatter'] == 7 / 8 * whole
  assert sent['all-reduce'] == pytest.approx(2 * 7 / 8 * whole / 8)
