# SPDX-License-Identifier: Apache-2.0
"""Selection moves and sorts no per-token arrays, on a pod and on fake devices.

Compiled ahead of time for 64 TPU v5p chips, at 2²⁴ tokens. Bytes are those that
collectives deliver to a device in one call; see `entropy.collectives`. A loop of
unknown length counts with its largest number of trips.
"""

import functools
import math

import jax
import jax.numpy as jnp
import pytest
from entropy.collectives import collective_bytes, operation_sizes
from jax.sharding import NamedSharding, PartitionSpec

from covrl import TokenStats, gspo, select_random, select_top, token_weights

LIMIT = 64 * 1024  # bytes of a program's collectives
# A float32's key is found three bits a round.
ROUNDS = 11

LAYOUTS = {
  'batch': PartitionSpec(('data', 'sequence')),
  'batch_and_sequence': PartitionSpec('data', 'sequence'),
}


def selected_top(scores, mask, sequence_ids, positions):
  """The top 0.2 % of the tokens by score."""
  return select_top(
    scores,
    mask,
    fraction=2e-3,
    sequence_ids=sequence_ids,
    positions=positions,
  )


def selected_random(scores, mask, sequence_ids, positions):
  """A random 0.2 % of the tokens."""
  del scores
  return select_random(
    mask,
    fraction=2e-3,
    key=jax.random.key(0),
    step=jnp.asarray(3),
    sequence_ids=sequence_ids,
    positions=positions,
  )


def packed_gspo(logprobs, mask, segment_ids, positions):
  """The sums over sequences of packed rows: forward and backward."""
  del positions
  context = {
    'advantages': jnp.ones_like(logprobs),
    'old_logprobs': 0.5 * logprobs,
    'weights': token_weights(
      mask, 'sequence-mean-token-mean', segment_ids=segment_ids
    ),
    'segment_ids': segment_ids,
  }
  stats = TokenStats(logprobs=logprobs, entropy=jnp.zeros_like(logprobs))
  loss = functools.partial(gspo, form='sequence')
  return jax.value_and_grad(loss, has_aux=True)(stats, **context)


def compiled_text(function, mesh, layout, tokens):
  """HLO of a function of per-token arrays, compiled for a mesh."""
  shape = (math.isqrt(tokens), math.isqrt(tokens))
  sharding = NamedSharding(mesh, LAYOUTS[layout])
  arguments = [
    jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    for dtype in (jnp.float32, bool, jnp.int32, jnp.int32)
  ]
  text = jax.jit(function).lower(*arguments).compile().as_text()
  assert text is not None
  return text


def check_selection(text, devices):
  """Asserts that a program exchanges few bytes and sorts nothing."""
  bytes_by_kind = collective_bytes(text, ROUNDS)
  assert set(bytes_by_kind) <= {'all-reduce', 'all-gather'}
  assert sum(bytes_by_kind.values()) < LIMIT
  # An all-gather collects at most one number from each device.
  assert max(operation_sizes(text, 'all-gather'), default=0) <= devices
  assert operation_sizes(text, 'sort') == []
  # Three searches of eleven rounds, seven counts each, are in the program.
  assert sum(bytes_by_kind.values()) >= 3 * ROUNDS * 7 * 4


def check_sums(text, tokens):
  """Asserts that sums over sequences exchange few bytes, without a sort."""
  bytes_by_kind = collective_bytes(text, ROUNDS)
  assert 4 <= sum(bytes_by_kind.values()) < LIMIT
  # Eight segment boundaries per row, of the rows of a device.
  assert max(operation_sizes(text, 'all-gather'), default=0) <= tokens**0.5 * 8
  assert operation_sizes(text, 'sort') == []
  assert operation_sizes(text, 'scatter') == []


SELECTIONS = [
  (selected_top, 'batch'),
  (selected_top, 'batch_and_sequence'),
  (selected_random, 'batch_and_sequence'),
]


@pytest.mark.parametrize(('function', 'layout'), SELECTIONS)
def test_selection_on_a_pod_exchanges_counts_only(pod_mesh, function, layout):
  check_selection(
    compiled_text(function, pod_mesh, layout, 2**24), pod_mesh.size
  )


@pytest.mark.parametrize(('function', 'layout'), SELECTIONS)
def test_selection_on_fake_devices_exchanges_counts_only(
  fake_mesh, function, layout
):
  check_selection(
    compiled_text(function, fake_mesh, layout, 2**14), fake_mesh.size
  )


@pytest.mark.parametrize('layout', LAYOUTS)
def test_sequence_sums_on_a_pod_exchange_boundaries_only(pod_mesh, layout):
  check_sums(compiled_text(packed_gspo, pod_mesh, layout, 2**24), 2**24)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_sequence_sums_on_fake_devices_exchange_boundaries_only(
  fake_mesh, layout
):
  check_sums(compiled_text(packed_gspo, fake_mesh, layout, 2**14), 2**14)


def test_collective_bytes_are_counted(fake_mesh):
  """An all-gather in a loop counts once per iteration."""
  sharded = NamedSharding(fake_mesh, PartitionSpec('data', None))
  replicated = NamedSharding(fake_mesh, PartitionSpec())

  def sort_gathered(x):
    def body(_, x):
      x = jax.lax.with_sharding_constraint(x, replicated)
      return jax.lax.with_sharding_constraint(jnp.sort(x, axis=0), sharded)

    return jax.lax.fori_loop(0, 5, body, x)

  x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=sharded)
  text = jax.jit(sort_gathered).lower(x).compile().as_text()
  assert text is not None
  assert collective_bytes(text, 1000)['all-gather'] == 5 * 64 * 32 * 4
  assert operation_sizes(text, 'sort')
