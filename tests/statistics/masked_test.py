# SPDX-License-Identifier: Apache-2.0
"""Statistics of the positions on a mask only."""

import contextlib
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from covrl.parallel.sharding import make_mesh
from covrl.statistics import Truncation, compaction, tiling, token_stats
from covrl.types import TokenStats

SHAPE, WIDTH, VOCABULARY = (8, 11), 16, 300
IMPLEMENTATIONS = None, 'chunked', 'pallas'


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
  """Eight blocks of 11 positions on one device, two of 11 on four.

  Kernels have three blocks of 32 positions.
  """
  monkeypatch.setattr(compaction, 'MIN_ROWS_PER_BLOCK', 8)
  monkeypatch.setattr(tiling, 'BLOCKS', ((32, 128),))
  monkeypatch.setattr(tiling, 'TILE', 16)


def interpreted(implementation):
  """Interprets kernels for TPUs."""
  if implementation == 'pallas':
    return pltpu.force_tpu_interpret_mode()
  return contextlib.nullcontext()


def masks():
  """No position, one, the last of some rows, a random half, and all."""
  rng = np.random.default_rng(2)
  result = {name: np.zeros(SHAPE, bool) for name in ('none', 'one', 'ends')}
  result['one'][5, 3] = True
  result['ends'][::3, 7:] = True
  result['some'] = rng.random(SHAPE) < 0.5
  return result | {'all': np.ones(SHAPE, bool)}


def problem():
  """Hidden states, unembedding, targets, and cotangents of both statistics."""
  rng = np.random.default_rng(0)
  hidden = jnp.asarray(rng.normal(size=(*SHAPE, WIDTH)), jnp.float32)
  unembedding = jnp.asarray(rng.normal(size=(WIDTH, VOCABULARY)), jnp.float32)
  unembedding = unembedding.at[:, 5].set(-jnp.inf)
  targets = jnp.asarray(rng.integers(6, VOCABULARY, SHAPE))
  g, h = jnp.asarray(rng.normal(size=(2, *SHAPE)), jnp.float32)
  return hidden, unembedding, targets, TokenStats(logprobs=g, entropy=h)


@functools.partial(jax.jit, static_argnums=5)
def statistics_and_cotangents(
  hidden, unembedding, targets, signal, mask, implementation
):
  """Statistics, moments, and cotangents of the inputs."""
  temperature = jnp.linspace(0.5, 2, hidden[..., 0].size).reshape(SHAPE)

  def forward(hidden, unembedding):
    return token_stats(
      hidden,
      unembedding,
      targets,
      temperature=temperature,
      soft_cap=3.0,
      moments=True,
      mask=mask,
      implementation=implementation,
    )

  stats, pull_back, moments = jax.vjp(
    forward, hidden, unembedding, has_aux=True
  )
  return stats, moments, pull_back(signal)


def expected(mask):
  """Statistics and cotangents on a mask, from those of all positions."""
  hidden, unembedding, targets, signal = problem()
  masked_signal = jax.tree.map(lambda x: jnp.where(mask, x, 0), signal)
  stats, moments, cotangents = statistics_and_cotangents(
    hidden, unembedding, targets, masked_signal, None, None
  )
  masked = jax.tree.map(lambda x: jnp.where(mask, x, 0), (stats, moments))
  return *masked, cotangents


def assert_agree(actual, reference):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-6, atol=2e-6),
    actual,
    reference,
  )


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_equals_statistics_of_all_positions(implementation):
  for name, mask in masks().items():
    with interpreted(implementation):
      results = statistics_and_cotangents(*problem(), mask, implementation)
    assert_agree(results, expected(mask))
    for leaf in jax.tree.leaves(results[:2]):
      assert not np.asarray(leaf)[~mask].any(), name


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_positions_off_the_mask_are_not_read(implementation):
  """Hidden states that are not finite have no effect there."""
  hidden, unembedding, targets, signal = problem()
  for (name, mask), bad in itertools.product(
    masks().items(), (jnp.nan, jnp.inf)
  ):
    bad_hidden = jnp.where(mask[..., None], hidden, bad)
    with interpreted(implementation):
      results = statistics_and_cotangents(
        bad_hidden, unembedding, targets, signal, mask, implementation
      )
    assert_agree(results, expected(mask))
    assert not np.asarray(results[2][0])[~mask].any(), name


def test_truncated_policies_do_not_read_positions_off_the_mask():
  hidden, unembedding, targets, signal = problem()
  mask = masks()['some']

  @jax.jit
  def gradients(hidden):
    def total_top_entropy(hidden, unembedding):
      stats = token_stats(
        hidden,
        unembedding,
        targets,
        mask=jnp.asarray(mask),
        truncation=Truncation(removed=0.2),
        implementation='chunked',
      )
      top_entropy = jnp.asarray(stats.top_entropy)
      return jnp.sum(top_entropy * signal.entropy)

    return jax.grad(total_top_entropy, argnums=(0, 1))(hidden, unembedding)

  bad = jnp.where(mask[..., None], hidden, jnp.nan)
  assert_agree(gradients(bad), gradients(hidden))


def test_temperatures_off_the_mask_are_not_read():
  hidden, unembedding, targets, _ = problem()
  mask = jnp.asarray(masks()['some'])

  @jax.jit
  def gradient(temperature):
    def total(hidden):
      stats = token_stats(
        hidden, unembedding, targets, temperature=temperature, mask=mask
      )
      return jnp.sum(stats.logprobs)

    return jax.grad(total)(hidden)

  bad = jnp.where(mask, 1.0, 0.0)
  assert_agree(gradient(bad), gradient(jnp.ones(SHAPE)))


def test_meshes_give_the_same_statistics_without_more_collectives():
  """Each device gathers its own positions, without a collective."""
  case = problem()
  with jax.set_mesh(make_mesh((2, 2, 2))):
    program = statistics_and_cotangents.lower(
      *case, masks()['some'], 'chunked'
    ).compile()
    unmasked_program = statistics_and_cotangents.lower(
      *case, None, 'chunked'
    ).compile()
    results = [program(*case, mask) for mask in masks().values()]
  for actual, mask in zip(results, masks().values(), strict=True):
    assert_agree(actual, expected(mask))
  for operation in ('all-gather', 'all-to-all', 'collective-permute'):
    assert count(program, operation) <= count(unmasked_program, operation)


def count(program, operation):
  """Number of operations of a kind in a compiled program."""
  return program.as_text().count(f' {operation}(')


def test_statistics_of_truncated_policies_are_zero_off_the_mask():
  hidden, unembedding, targets, _ = problem()
  mask = jnp.asarray(masks()['some'])

  @jax.jit
  def run(mask):
    truncation = Truncation(min_p=0.1, removed=0.2)
    return token_stats(
      hidden,
      unembedding,
      targets,
      moments=True,
      mask=mask,
      truncation=truncation,
    )

  masked, unmasked = run(mask), run(None)
  assert_agree(masked, jax.tree.map(lambda x: jnp.where(mask, x, 0), unmasked))


@pytest.mark.usefixtures('no_annotation_checks')
def test_arrays_of_numpy_are_taken():
  mask = np.array([True, False])
  arrays: dict[str, Any] = {
    'hidden': np.ones((2, 3), np.float32),
    'unembedding': np.ones((3, 5), np.float32),
    'targets': np.ones(2, np.int32),
    'mask': mask,
  }
  stats = token_stats(**arrays, implementation='chunked')
  np.testing.assert_allclose(stats.entropy, np.log(5) * mask, rtol=1e-6)
