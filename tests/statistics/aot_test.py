# SPDX-License-Identifier: Apache-2.0
"""The kernels compiled ahead of time for TPU topologies."""

import functools
import platform
import re
import sys

import jax
import jax.numpy as jnp
import pytest

from covrl.parallel import topologies
from covrl.parallel.sharding import (
  TRAIN_RULES,
  batch_sharding,
  make_mesh,
  named_sharding,
)
from covrl.statistics import token_stats

pytestmark = pytest.mark.skipif(
  sys.platform != 'linux' or platform.machine() != 'x86_64',
  reason='libtpu, of the dev extra, is for Linux on x86-64 only',
)

GIB = 2**30
KERNELS = {'token_sums', 'token_sums_hidden', 'token_sums_unembedding'}


@pytest.fixture(autouse=True, scope='module')
def _uncached():
  with topologies.no_compilation_cache():
    yield


def mesh_of(topology, shape):
  """A mesh of the first devices of a topology."""
  devices = topologies.compile_only_devices(topologies.find_topology(topology))
  count = functools.reduce(lambda x, y: x * y, shape)
  return make_mesh(shape, list(devices)[:count])


def compiled(
  mesh, rows, length, width, vocabulary, dtype, *, is_masked=False, **static
):
  """Compiles statistics and cotangents, sharded as in training."""

  def statistics_and_cotangents(
    hidden, unembedding, targets, temperature, mask
  ):
    def forward(hidden, unembedding):
      return token_stats(
        hidden,
        unembedding,
        targets,
        temperature=temperature,
        mask=mask if is_masked else None,
        **static,
      )

    out, pull_back = jax.vjp(forward, hidden, unembedding)
    return out, pull_back(out)

  batch = batch_sharding(mesh)
  columns = named_sharding(mesh, ('embed', 'vocab'), TRAIN_RULES)

  def array(shape, dtype, sharding):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  with jax.set_mesh(mesh):
    return (
      jax.jit(
        statistics_and_cotangents, out_shardings=(batch, (batch, columns))
      )
      .lower(
        array((rows, length, width), dtype, batch),
        array((width, vocabulary), dtype, columns),
        array((rows, length), jnp.int32, batch),
        array((rows, length), jnp.float32, batch),
        array((rows, length), jnp.bool_, batch),
      )
      .compile()
    )


@pytest.mark.parametrize(
  ('topology', 'dtype', 'soft_cap', 'is_masked'),
  [
    ('v5e:2x2', jnp.bfloat16, None, True),
    ('v5p:2x2x1', jnp.bfloat16, 30.0, True),
    ('v6e:2x2', jnp.float32, None, False),
  ],
)
def test_kernels_compile_on_a_mesh(topology, dtype, soft_cap, is_masked):
  mesh = mesh_of(topology, (1, 2, 2))
  program = str(
    compiled(
      mesh,
      8,
      300,
      256,
      5000,
      dtype,
      is_masked=is_masked,
      soft_cap=soft_cap,
    ).as_text()
  )
  # On TPU the kernels are the default implementation.
  assert set(re.findall(r'%(token_sums\w*?)[.\d]* =', program)) == KERNELS


def test_large_vocabularies_need_far_less_memory_than_their_logits():
  """One float32 array of these logits would be 18.6 GiB."""
  mesh = mesh_of('v5p:2x2x1', (1, 1, 1))
  memory = compiled(mesh, 8, 4096, 3584, 152064, jnp.bfloat16).memory_analysis()
  assert memory is not None
  gradients = 2 * (32768 * 3584 + 3584 * 152064)
  assert memory.output_size_in_bytes == pytest.approx(gradients, rel=0.01)
  assert memory.temp_size_in_bytes < 1.5 * GIB
