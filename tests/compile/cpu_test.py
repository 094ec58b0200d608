# SPDX-License-Identifier: Apache-2.0
"""Estimates against counts by hand and XLA's own counts, on the CPU back end."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P

from covrl.compile import accuracy, model_cost
from covrl.compile.cost import cost_of
from covrl.compile.hlo import parse
from covrl.models import Policy, tiny
from covrl.statistics import token_stats


def compiled(function, *arguments):
  """Returns the compiled program, and the costs counted from its text."""
  program = jax.jit(function).lower(*arguments).compile()
  text = program.as_text()
  assert text is not None
  return program, cost_of(parse(text, 'gpu'))


def is_in_range(comparison, estimate, reference):
  """Whether the report's range includes a ratio."""
  least, most = comparison.least, comparison.most
  return least <= round(estimate / reference, 2) <= most


ROWS, LENGTH = 4, 32
TOKENS = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)


def scoring_function(config):
  """Returns the policy and the sum of all log-probabilities as a function."""
  policy = Policy(config)

  def score(params, tokens):
    hidden = policy.hidden(
      params,
      tokens,
      positions=jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape),
      segment_ids=jnp.ones_like(tokens),
    )
    unembedding = policy.unembedding(params)
    return jnp.sum(token_stats(hidden, unembedding, tokens).logprobs)

  return policy, score


def products_by_hand(config):
  """Operations of a forward pass without the savings of causality."""
  pairs = LENGTH * (LENGTH - 1) / 2
  skipped = 4 * config.num_heads * config.head_dim * pairs
  by_hand = model_cost.scoring_flops(config, ROWS, LENGTH)
  return by_hand + ROWS * config.num_layers * skipped


@pytest.mark.parametrize(
  'changes',
  [
    {'num_layers': 1, 'model_dim': 64, 'hidden_dim': 256},
    {'num_layers': 3, 'model_dim': 64, 'hidden_dim': 128, 'num_kv_heads': 1},
    {'num_layers': 5, 'model_dim': 128, 'hidden_dim': 512},
  ],
)
def test_operations_of_a_model_equal_counts_by_hand(changes):
  """Products by hand and those in the program, loops over layers included."""
  config = dataclasses.replace(tiny(512), **changes)
  policy, score = scoring_function(config)
  for function, passes in ((score, 1), (jax.grad(score), 3)):
    program, cost = compiled(function, policy.abstract_params(), TOKENS)
    by_hand = passes * products_by_hand(config)
    assert is_in_range(
      accuracy.OPERATIONS, sum(cost.products.values()), by_hand
    )
    # The rest are norms, softmax and rotations.
    assert by_hand < cost.flops < 1.25 * by_hand
    memory = program.memory_analysis()
    assert memory is not None
    sizes = [
      np.prod(x.shape) * 4 for x in jax.tree.leaves(policy.abstract_params())
    ]
    arguments = sum(sizes) + 4 * ROWS * LENGTH
    assert memory.argument_size_in_bytes == arguments
    assert cost.bytes > memory.argument_size_in_bytes
    if config.num_layers == 1:
      # XLA counts loop bodies once; a single layer needs no loop.
      xla_cost = program.cost_analysis()
      assert xla_cost is not None
      assert is_in_range(accuracy.ARITHMETIC, cost.flops, xla_cost['flops'])
      assert is_in_range(
        accuracy.TRAFFIC, cost.bytes, xla_cost['bytes accessed']
      )


@pytest.mark.parametrize('layers', [5, 8])
def test_rematerialisation_takes_operations_for_memory(layers):
  config = tiny(512)
  results = {}
  for remat in ('nothing', 'everything'):
    policy, score = scoring_function(
      dataclasses.replace(config, num_layers=layers, model_dim=64, remat=remat)
    )
    program, cost = compiled(jax.grad(score), policy.abstract_params(), TOKENS)
    passes = sum(cost.products.values()) / 3 / products_by_hand(policy.config)
    memory = program.memory_analysis()
    assert memory is not None
    results[remat] = passes, memory.temp_size_in_bytes
  products, memory = zip(*results.values(), strict=True)
  assert products[0] == 1
  # At most the layers' share of a forward pass.
  assert 1.1 < products[1] < 4 / 3
  assert memory[1] < memory[0] / 2


def test_bytes_of_collectives_on_eight_devices_equal_counts_by_hand():
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
  sent_bytes = {
    collective.kind: collective.sent_bytes * count
    for collective, count in cost.collectives
  }
  array_bytes = 4 * 64 * 128
  by_hand = {
    'all-gather': 7 / 8 * array_bytes,
    'reduce-scatter': 7 / 8 * array_bytes,
    'all-reduce': 2 * 7 / 8 * array_bytes / 8,
  }
  assert sent_bytes.keys() == by_hand.keys()
  for kind, size in sent_bytes.items():
    assert is_in_range(accuracy.COLLECTIVES, size, by_hand[kind])
