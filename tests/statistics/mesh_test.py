# SPDX-License-Identifier: Apache-2.0
"""Statistics on a mesh: the same numbers, and little that devices exchange.

What they exchange is read in the compiled program.
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
  fit,
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


def both(hidden, unembedding, targets, signal, implementation: Any = 'chunked'):
  """Statistics, moments, and the pull-back of cotangents."""

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


def placed(mesh, hidden, unembedding, targets, signal):
  """The arrays as they lie in training."""
  rows = shard_batch((hidden, targets, signal), mesh)
  columns = fit(mesh, ('embed', 'vocab'), unembedding.shape, TRAIN_RULES)
  return rows[0], jax.device_put(unembedding, columns), *rows[1:]


def compiled(mesh, case):
  """The program on a mesh, cotangents lying as what they are cotangents of."""
  case = placed(mesh, *case)
  shardings = None, None, (case[0].sharding, case[1].sharding)
  program = jax.jit(both, out_shardings=shardings).lower(*case).compile()
  return program, case


@functools.cache
def expected():
  return jax.tree.map(np.asarray, jax.jit(both)(*problem()))


def agree(actual, wanted, tolerance=2e-5):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(
      x, y, rtol=tolerance, atol=tolerance
    ),
    actual,
    wanted,
  )


def exchanged(program):
  """Each collective's operation and the shapes that it returns."""
  for line in program.as_text().splitlines():
    if found := COLLECTIVE.search(line):
      shapes = re.findall(r'(\w+)\[([\d,]*)\]', found[1])
      yield (
        found[2],
        [(kind, tuple(map(int, s.split(',')))) for kind, s in shapes if s],
      )


@pytest.mark.parametrize('shape', MESHES)
def test_what_devices_exchange(shape):
  program, case = compiled(make_mesh(shape), problem())
  agree(program(*case), expected())
  data, fsdp, tensor = shape
  tokens, columns = ROWS * LENGTH // (data * fsdp), VOCABULARY // tensor
  allowed = {
    # Per token: peak, then sums; a row of the model's width backward.
    ('all-reduce', (tokens, 1)),
    ('all-reduce', (tokens, WIDTH)),
    # The unembedding's rows before, its cotangent's after; which columns of
    # it are impossible.
    ('all-gather', (WIDTH, columns)),
    ('reduce-scatter', (WIDTH // fsdp, columns)),
    ('all-reduce', (WIDTH // fsdp, columns)),
    ('all-reduce', (columns,)),
  }
  found = [
    (operation, shape)
    for operation, shapes in exchanged(program)
    for _, shape in shapes
  ]
  assert set(found) <= allowed
  if tensor == 8:
    assert {shape for _, shape in found} == {(tokens, 1), (tokens, WIDTH)}
  # Of the unembedding's size there is one of each, and not one per chunk.
  large = [
    shape for shape in found if math.prod(shape[1]) >= WIDTH * columns // 8
  ]
  assert len(set(large)) == len(large) <= 3


def test_nothing_is_exchanged_in_a_loop():
  program, _ = compiled(make_mesh((2, 2, 2)), problem())
  text = str(program.as_text())
  assert ' while(' in text
  for computation in text.split('\n\n'):
    if not computation.lstrip().startswith('ENTRY'):
      assert not COLLECTIVE.search(computation)


def test_derivatives_are_summed_in_float32():
  program, case = compiled(make_mesh((2, 2, 2)), problem(dtype=jnp.bfloat16))
  _, _, (hidden, unembedding) = program(*case)
  assert hidden.dtype == unembedding.dtype == jnp.bfloat16
  for operation, shapes in exchanged(program):
    if operation != 'all-gather':
      assert {kind for kind, _ in shapes} <= {'f32', 'pred'}


@pytest.mark.parametrize(
  ('rows', 'vocabulary'), [(6, VOCABULARY), (ROWS, 1021), (6, 1021)]
)
def test_what_a_mesh_cannot_divide_is_whole(rows, vocabulary):
  case = problem(rows, vocabulary)
  with jax.set_mesh(make_mesh((2, 2, 2))):
    actual = jax.jit(both)(*case)
  agree(actual, jax.jit(both)(*case))


def test_within_a_callers_shard_map():
  mesh = make_mesh((8,))

  def on_device(hidden, unembedding, targets, signal):
    stats, moments, (back, columns) = both(hidden, unembedding, targets, signal)
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
  agree(actual, expected())


def test_a_mesh_of_other_axes_is_the_partitioners():
  mesh = jax.make_mesh((4, 2), ('x', 'y'), axis_types=(AxisType.Auto,) * 2)
  hidden, unembedding, targets, signal = problem()
  rows, columns = (jax.NamedSharding(mesh, s) for s in (P('x'), P(None, 'y')))
  hidden, targets, signal = jax.device_put((hidden, targets, signal), rows)
  unembedding = jax.device_put(unembedding, columns)
  actual = jax.jit(both, static_argnums=4)(
    hidden, unembedding, targets, signal, None
  )
  agree(actual, expected())


def test_kernels_on_a_mesh():
  """Each device's kernel finds the targets among its own columns."""
  mesh = make_mesh((1, 1, 2), jax.devices()[:2])
  case = placed(mesh, *problem(rows=2))
  with pltpu.force_tpu_interpret_mode():
    actual = jax.jit(both, static_argnums=4)(*case, 'pallas')
  agree(actual, jax.jit(both)(*problem(rows=2)))
