# SPDX-License-Identifier: Apache-2.0
"""TPUs by name: what slices there are, and what their chips can do.

Google names v4 and v5p slices by their TensorCores, two a chip, and v5e and v6e
slices by their chips: v5p-128 and v6e-64 have 64 chips each. Here a slice is
`v5p:4x4x4`, by its chips, or goes by Google's name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import math
import os
from collections.abc import Iterator
from typing import Any, NamedTuple


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """A generation of TPU.

  Attributes:
    name: as in `v5p:4x4x4`.
    accelerator: prefix of Google's names.
    kind: what JAX calls its devices.
    cores: TensorCores, as Google's names count them.
    flops: bfloat16 operations per second.
    hbm: bytes of memory that XLA lets a program have.
    bandwidth: bytes per second to and from HBM.
    link: bytes per second to one neighbour, one way.
    axes: of the torus.
    wraps: an axis closes to a ring if this divides its length.
    dcn: bytes per second and chip between slices: an estimate.
    slices: chips along each axis, of each slice there is.
  """

  name: str
  accelerator: str
  kind: str
  cores: int
  flops: float
  hbm: int
  bandwidth: float
  link: float
  axes: int
  wraps: int
  dcn: float
  slices: tuple[tuple[int, ...], ...]


GIB = 2**30
_CUBES = (
  (2, 2, 1),
  (2, 2, 2),
  (2, 2, 4),
  (2, 4, 4),
  (4, 4, 4),
  (4, 4, 8),
  (4, 4, 12),
  (4, 8, 8),
  (4, 4, 20),
  (4, 8, 12),
  (8, 8, 8),
  (4, 12, 12),
  (4, 8, 20),
  (8, 8, 12),
  (8, 8, 16),
  (8, 12, 16),
  (8, 16, 16),
)
_SQUARES = (
  (1, 1),
  (2, 2),
  (2, 4),
  (4, 4),
  (4, 8),
  (8, 8),
  (8, 16),
  (16, 16),
)

# Figures that Google publishes; HBM as XLA states it when a program needs more.
CHIPS = (
  Chip(
    name='v5e',
    accelerator='v5litepod',
    kind='TPU v5 lite',
    cores=1,
    flops=197e12,
    hbm=int(15.75 * GIB),
    bandwidth=819e9,
    link=45e9,
    axes=2,
    wraps=16,
    dcn=3.125e9,
    slices=_SQUARES,
  ),
  Chip(
    name='v5p',
    accelerator='v5p',
    kind='TPU v5',
    cores=2,
    flops=459e12,
    hbm=int(95.74 * GIB),
    bandwidth=2765e9,
    link=90e9,
    axes=3,
    wraps=4,
    dcn=6.25e9,
    slices=_CUBES,
  ),
  Chip(
    name='v6e',
    accelerator='v6e',
    kind='TPU v6 lite',
    cores=1,
    flops=918e12,
    hbm=int(31.25 * GIB),
    bandwidth=1640e9,
    link=90e9,
    axes=2,
    wraps=16,
    dcn=12.5e9,
    slices=_SQUARES,
  ),
)


class Topology(NamedTuple):
  """A slice of TPUs.

  Attributes:
    chip: its generation.
    shape: chips along each axis.
  """

  chip: Chip
  shape: tuple[int, ...]

  @property
  def name(self) -> str:
    """As libtpu takes it.

    >>> find('v5p-128').name
    'v5p:4x4x4'
    """
    return f'{self.chip.name}:{"x".join(map(str, self.shape))}'

  @property
  def accelerator(self) -> str:
    """As Google Cloud takes it.

    >>> find('v5p:4x4x4').accelerator
    'v5p-128'
    """
    return f'{self.chip.accelerator}-{self.chips * self.chip.cores}'

  @property
  def chips(self) -> int:
    """How many.

    >>> find('v5p-64').chips
    32
    """
    return math.prod(self.shape)

  def links(self, axis: int) -> int:
    """How many neighbours a chip has along an axis, in effect."""
    return 2 if self.shape[axis] % self.chip.wraps == 0 else 1


TOPOLOGIES = tuple(
  Topology(chip, shape) for chip in CHIPS for shape in chip.slices
)


def find(name: str) -> Topology:
  """The slice of a name, covrl's or Google's.

  Raises:
    ValueError: if there is none of that name; lists those there are.

  >>> find('v6e-8') == find('v6e:2x4')
  True
  """
  for topology in TOPOLOGIES:
    if name in (topology.name, topology.accelerator):
      return topology
  known = '; '.join(
    ', '.join(
      f'{each.name} ({each.accelerator})'
      for each in TOPOLOGIES
      if each.chip is chip
    )
    for chip in CHIPS
  )
  raise ValueError(f'the topology must be one of {known}; got {name!r}')


def devices(topology: Topology, num_slices: int = 1) -> list[Any]:
  """A slice's chips, or several slices', to compile for; none need be there.

  Raises:
    ValueError: if libtpu, which has the compiler, is not installed, or
      `num_slices` is less than 1.
  """
  if num_slices < 1:
    raise ValueError(f'num_slices must be at least 1, got {num_slices}')
  if importlib.util.find_spec('libtpu') is None:
    raise ValueError(
      'compiling for TPUs needs libtpu, which is not installed; on Linux'
      " x86-64, python -m pip install 'jax[tpu]' installs it"
    )
  _describe_none()
  from jax.experimental import topologies

  options: dict[str, Any] = {}
  if topology.chips < 4 or (topology.chip.axes == 2 and topology.chips < 8):
    # libtpu thinks of hosts with four chips.
    bounds = [*topology.shape, 1, 1][:3]
    options['chips_per_host_bounds'] = tuple(bounds)
  if num_slices > 1:
    options['num_slices'] = num_slices
  described = topologies.get_topology_desc(
    platform='tpu', topology_name=topology.name, **options
  )
  return list(described.devices)


@functools.cache
def _describe_none() -> None:
  """Tells libtpu not to look for TPUs, nor to mind other processes."""
  for name, value in (
    ('TPU_SKIP_MDS_QUERY', '1'),
    ('TPU_WORKER_HOSTNAMES', 'localhost'),
    ('TPU_ACCELERATOR_TYPE', 'v5p-8'),
    ('ALLOW_MULTIPLE_LIBTPU_LOAD', '1'),
  ):
    os.environ.setdefault(name, value)


@contextlib.contextmanager
def uncached() -> Iterator[None]:
  """Within it, no compiled program is read from disk or kept there.

  One for chips that are not there could be written, and not be read again.
  """
  import jax
  from jax.experimental.compilation_cache import compilation_cache

  before = jax.config.values['jax_enable_compilation_cache']
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()  # JAX asks whether there is one only once.
  try:
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', before)
    compilation_cache.reset_cache()
