# SPDX-License-Identifier: Apache-2.0
"""Selection on a pod and on fake devices: nothing of N is moved or sorted.

Compiled for 64 TPU v5p chips that need not be there. How bytes are counted:
`entropy.collectives`.
"""

import contextlib
import functools
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from entropy.collectives import collective_bytes, operations
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from covrl import select_random, select_top

TOKENS = 2**24
KIB = 1024
# A float32's key is found three bits a round.
ROUNDS = 11

LAYOUTS = {
  'batch': PartitionSpec(('data', 'sequence')),
  'batch_and_sequence': PartitionSpec('data', 'sequence'),
}


@pytest.fixture(scope='module')
def pod():
  """The devices of a v5p 4×4×4 slice, as 16 × 4."""
  pytest.importorskip('libtpu')
  os.environ.update(
    TPU_SKIP_MDS_QUERY='1',
    TPU_WORKER_HOSTNAMES='localhost',
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',
  )
  devices = topologies.get_topology_desc('v5p:4x4x4', 'tpu').devices
  # A program for chips that are not there could be kept, but not be read again.
  with kept_from_cache():
    yield Mesh(np.array(devices).reshape(16, 4), ('data', 'sequence'))


@contextlib.contextmanager
def kept_from_cache():
  option = 'jax_persistent_cache_min_compile_time_secs'
  before = getattr(jax.config, option)
  jax.config.update(option, math.inf)
  yield
  jax.config.update(option, before)


@pytest.fixture(scope='module')
def fake():
  """Eight devices of the CPU, as 4 × 2."""
  return Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ('data', 'sequence'))


def top(scores, mask, sequence_ids, positions):
  return select_top(
    scores,
    mask,
    fraction=2e-3,
    sequence_ids=sequence_ids,
    positions=positions,
  )


def drawn(scores, mask, sequence_ids, positions):
  del scores
  return select_random(
    mask,
    fraction=2e-3,
    key=jax.random.key(0),
    step=jnp.asarray(3),
    sequence_ids=sequence_ids,
    positions=positions,
  )


def compiled(form, mesh, spec, tokens):
  shape = (math.isqrt(tokens), math.isqrt(tokens))
  placed = NamedSharding(mesh, spec)
  arguments = [
    jax.ShapeDtypeStruct(shape, dtype, sharding=placed)
    for dtype in (jnp.float32, bool, jnp.int32, jnp.int32)
  ]
  text = jax.jit(form).lower(*arguments).compile().as_text()
  assert text is not None
  return text


def check(program, devices):
  moved = collective_bytes(program, ROUNDS)
  assert set(moved) <= {'all-reduce', 'all-gather'}
  assert sum(moved.values()) < 64 * KIB
  # What is gathered, if anything, is a number from each device.
  assert max(operations(program, 'all-gather'), default=0) <= devices
  assert operations(program, 'sort') == []
  # Three searches of eleven rounds, seven counts each: what is read is there.
  assert sum(moved.values()) >= 3 * ROUNDS * 7 * 4


CASES = [(top, 'batch'), (top, 'batch_and_sequence')]
CASES += [(drawn, 'batch_and_sequence')]


@pytest.mark.parametrize(('form', 'layout'), CASES)
def test_on_a_pod(pod, form, layout):
  check(compiled(form, pod, LAYOUTS[layout], TOKENS), pod.size)


@pytest.mark.parametrize(('form', 'layout'), CASES)
def test_on_fake_devices(fake, form, layout):
  check(compiled(form, fake, LAYOUTS[layout], 2**14), fake.size)


def test_bytes_are_counted(fake):
  """A gather of everything, in a loop, is seen as that."""
  spec = PartitionSpec('data', None)

  @functools.partial(jax.jit, static_argnums=1)
  def gathered(x, times):
    def body(_, x):
      whole = jax.lax.with_sharding_constraint(
        x, NamedSharding(fake, PartitionSpec())
      )
      return jax.lax.with_sharding_constraint(
        jnp.sort(whole, axis=0), NamedSharding(fake, spec)
      )

    return jax.lax.fori_loop(0, times, body, x)

  x = jax.ShapeDtypeStruct(
    (64, 32), jnp.float32, sharding=NamedSharding(fake, spec)
  )
  program = gathered.lower(x, 5).compile().as_text()
  assert program is not None
  moved = collective_bytes(program, rounds=1000)
  assert moved['all-gather'] == 5 * 64 * 32 * 4
  assert operations(program, 'sort')
