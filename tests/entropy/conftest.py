# SPDX-License-Identifier: Apache-2.0
"""Meshes to compile for: a TPU pod that need not be attached, and fake devices."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from covrl.parallel import topologies


@pytest.fixture(scope='module')
def pod_mesh():
  """The devices of a v5p 4×4×4 slice, as 16 × 4."""
  pytest.importorskip('libtpu')
  devices = topologies.compile_only_devices(
    topologies.find_topology('v5p:4x4x4')
  )
  with topologies.no_compilation_cache():
    yield Mesh(np.array(devices).reshape(16, 4), ('data', 'sequence'))


@pytest.fixture(scope='module')
def fake_mesh():
  """Eight devices of the CPU, as 4 × 2."""
  return Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ('data', 'sequence'))
