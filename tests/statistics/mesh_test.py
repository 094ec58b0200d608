# SPDX-License-Identifier: Apache-2.0
"""Statistics on meshes: the same numbers, and few collectives.

Collectives are read from the compiled program.
"""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType

from covrl.parallel.sharding import (
  TRAIN_RULES,
  fitted_sharding,
  make_mesh,
  shard_batch,
)
from covrl.statistics import token_stats
from covrl.types import TokenStats

ROWS, LENGTH, WIDTH, VOCABULARY = 16, 12, 32, 1024
MESHES = ((8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2))
COLLECTIVE = re.compile(
  r' = (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all'
  r'|collective-permute)(?:-start)?\('
)


def problem(rows=ROWS, vocabulary=VOCABULARY, dtype=jnp.float32):
  """Hidden states, unembedding, targets, and cotangents of both statistics."""
  rng = np.random.default_rng(0)
  hidden = jnp.asarray(rng.normal(size=(rows, LENGTH, WIDTH)), dtype)
  unembedding = jnp.asarray(rng.normal(size=(WIDTH, vocabulary)), dtype)
  unembedding = unembedding.at[:, 5].set(-jnp.inf)
  targets = jnp.asarray(rng.integers(6, vocabulary, (rows, LENGTH)))
  g, h = jnp.asarray(rng.normal(size=(2, rows, LENGTH)), jnp.float32)
  return hidden, unembedding, targets, TokenStats(logprobs=g, entropy=h)


def statistics_and_cotangents(
  hidden, unembedding, targets, signal, implementation: Any = 'chunked'
):
  """Statistics, moments, and cotangents of the inputs."""

  def forward(hidden, unembedding):
    return token_stats(
      hidden,
      unembedding,
      targets,
      temperature=0.7,
      moments=True,
      implementation=implementation,
    )

  stats, pull_back, moments = jax.vjp(
    forward, hidden, unembedding, has_aux=True
  )
  return stats, moments, pull_back(signal)


def shard(mesh, hidden, unembedding, targets, signal):
  """The arrays, sharded as in training."""
  rows = shard_batch((hidden, targets, signal), mesh)
  columns = fitted_sharding(
    mesh, ('embed', 'vocab'), unembedding.shape, TRAIN_RULES
  )
  return rows[0], jax.device_put(unembedding, columns), *rows[1:]


@functools.cache
def compiled(shape, dtype=jnp.float32):
  """The program on a mesh; cotangents are sharded as their primals."""
  case = shard(make_mesh(shape), *problem(dtype=dtype))
  shardings = None, None, (case[0].sharding, case[1].sharding)
  program = (
    jax.jit(statistics_and_cotangents, out_shardings=shardings)
    .lower(*case)
    .compile()
  )
  return program, case


@functools.cache
def expected():
  return jax.tree.map(
    np.asarray, jax.jit(statistics_and_cotangents)(*problem())
  )


def assert_agree(actual, reference, tolerance=2e-5):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(
      x, y, rtol=tolerance, atol=tolerance
    ),
    actual,
    reference,
  )


def collectives(program):
  """Yields each collective's operation and result shapes."""
  for line in program.as_text().splitlines():
    if match := COLLECTIVE.search(line):
      shapes = re.findall(r'(\w+)\[([\d,]*)\]', match[1])
      yield (
        match[2],
        [(kind, tuple(map(int, s.split(',')))) for kind, s in shapes if s],
      )


@pytest.mark.parametrize('shape', MESHES)
def test_only_expected_collectives_of_expected_sizes_are_used(shape):
  program, case = compiled(shape)
  assert_agree(program(*case), expected())
  data, fsdp, tensor = shape
  tokens, columns = ROWS * LENGTH // (data * fsdp), VOCABULARY // tensor
  allowed = {
    # Per token: peak, then sums; backward, a row of the model's width.
    ('all-reduce', (tokens, 1)),
    ('all-reduce', (tokens, WIDTH)),
    # Rows of the unembedding, and of its cotangent; the mask of impossible
    # columns.
    ('all-gather', (WIDTH, columns)),
    ('reduce-scatter', (WIDTH // fsdp, columns)),
    ('all-reduce', (WIDTH // fsdp, columns)),
    ('all-reduce', (columns,)),
  }
  sizes = [
    (operation, shape)
    for operation, shapes in collectives(program)
    for _, shape in shapes
  ]
  assert set(sizes) <= allowed
  if tensor == 8:
    assert {shape for _, shape in sizes} == {(tokens, 1), (tokens, WIDTH)}
  # One collective of each kind has the unembedding's size, not one per chunk.
  large = [
    shape for shape in sizes if math.prod(shape[1]) >= WIDTH * columns // 8
  ]
  assert len(set(large)) == len(large) <= 3


def test_no_collectives_within_loops():
  program, _ = compiled((2, 2, 2))
  text = str(program.as_text())
  assert ' while(' in text
  for computation in text.split('\n\n'):
    if not computation.lstrip().startswith('ENTRY'):
      assert not COLLECTIVE.search(computation)


def test_cotangents_are_summed_over_devices_in_float32():
  program, case = compiled((2, 2, 2), jnp.bfloat16)
  _, _, (hidden, unembedding) = program(*case)
  assert hidden.dtype == unembedding.dtype == jnp.bfloat16
  for operation, shapes in collectives(program):
    if operation != 'all-gather':
      assert {kind for kind, _ in shapes} <= {'f32', 'pred'}


@pytest.mark.parametrize(
  ('rows', 'vocabulary'), [(6, VOCABULARY), (ROWS, 1021), (6, 1021)]
)
def test_axes_that_the_mesh_does_not_divide_give_the_same_statistics(
  rows, vocabulary
):
  case = problem(rows, vocabulary)
  with jax.set_mesh(make_mesh((2, 2, 2))):
    actual = jax.jit(statistics_and_cotangents)(*case)
  assert_agree(actual, jax.jit(statistics_and_cotangents)(*case))


def test_statistics_inside_a_shard_map_equal_those_outside():
  mesh = make_mesh((8,))

  def on_device(hidden, unembedding, targets, signal):
    stats, moments, (back, columns) = statistics_and_cotangents(
      hidden, unembedding, targets, signal
    )
    return stats, moments, (back, jax.lax.psum(columns, 'data'))

  rows = P('data')
  actual = jax.jit(
    jax.shard_map(
      on_device,
      mesh=mesh,
      in_specs=(rows, P(), rows, rows),
      out_specs=(rows, rows, (rows, P())),
      check_vma=False,
    )
  )(*problem())
  assert_agree(actual, expected())


def test_mesh_with_other_axis_names_is_partitioned_by_xla():
  mesh = jax.make_mesh((4, 2), ('x', 'y'), axis_types=(AxisType.Auto,) * 2)
  hidden, unembedding, targets, signal = problem()
  rows, columns = (jax.NamedSharding(mesh, s) for s in (P('x'), P(None, 'y')))
  hidden, targets, signal = jax.device_put((hidden, targets, signal), rows)
  unembedding = jax.device_put(unembedding, columns)
  actual = jax.jit(statistics_and_cotangents, static_argnums=4)(
    hidden, unembedding, targets, signal, None
  )
  assert_agree(actual, expected())


def test_kernels_on_a_mesh_give_the_same_statistics():
  """Each device's kernel looks for targets among its own columns."""
  mesh = make_mesh((1, 1, 2), jax.devices()[:2])
  case = shard(mesh, *problem(rows=2))
  with pltpu.force_tpu_interpret_mode():
    actual = jax.jit(statistics_and_cotangents, static_argnums=4)(
      *case, 'pallas'
    )
  assert_agree(actual, jax.jit(statistics_and_cotangents)(*problem(rows=2)))
