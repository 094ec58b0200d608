# SPDX-License-Identifier: Apache-2.0
"""TPU generations and slices by name, with their specifications.

A slice is named by its chips, `v5p:4x4x4`, or by Google's name. Google names v5p
slices by their TensorCores, two per chip, and v5e and v6e slices by their chips:
v5p-128 and v6e-64 have 64 chips each. `v5e-8` is short for Google's `v5litepod-8`.
`find_topology` and `compile_only_devices` accept GPUs, too; these are in
`covrl.parallel.gpus`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import math
import os
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, TypeAlias

from covrl.parallel import gpus
from covrl.parallel.gpus import GpuTopology


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """A generation of TPU.

  Attributes:
    name: short name, as in `v5p:4x4x4`.
    accelerator: prefix of Google's names of slices.
    kind: `device_kind` of its JAX devices.
    cores: TensorCores per chip, as counted in Google's names.
    flops: bfloat16 operations per second.
    hbm: bytes of memory available to a program.
    bandwidth: HBM bandwidth, bytes per second.
    link: bytes per second to one neighbour, in one direction.
    axes: dimensions of the torus.
    wraps: an axis closes to a ring if this divides its length.
    dcn: bytes per second and chip between slices; an estimate.
    slices: available slices, each as chips along each axis.
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
# Most slices that a run may have.
MAX_SLICES = 1024
_SLICES_3D = (
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
_SLICES_2D = (
  (1, 1),
  (2, 2),
  (2, 4),
  (4, 4),
  (4, 8),
  (8, 8),
  (8, 16),
  (16, 16),
)

# As published by Google; HBM as XLA reports it when a program exceeds it.
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
    slices=_SLICES_2D,
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
    slices=_SLICES_3D,
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
    slices=_SLICES_2D,
  ),
)


class Topology(NamedTuple):
  """A TPU slice.

  Attributes:
    chip: the TPU generation.
    shape: chips along each axis.
  """

  chip: Chip
  shape: tuple[int, ...]

  @property
  def platform(self) -> Literal['tpu']:
    """JAX's platform."""
    return 'tpu'

  @property
  def name(self) -> str:
    """Name for libtpu.

    >>> find_topology('v5p-128').name
    'v5p:4x4x4'
    """
    return f'{self.chip.name}:{"x".join(map(str, self.shape))}'

  @property
  def accelerator(self) -> str:
    """Accelerator type for Google Cloud.

    >>> find_topology('v5p:4x4x4').accelerator
    'v5p-128'
    """
    return f'{self.chip.accelerator}-{self.chips * self.chip.cores}'

  @property
  def names(self) -> tuple[str, ...]:
    """All names of the slice.

    >>> find_topology('v5e:2x4').names
    ('v5e:2x4', 'v5litepod-8', 'v5e-8')
    """
    short = f'{self.chip.name}-{self.chips * self.chip.cores}'
    return tuple(dict.fromkeys((self.name, self.accelerator, short)))

  @property
  def chips(self) -> int:
    """Number of chips.

    >>> find_topology('v5p-64').chips
    32
    """
    return math.prod(self.shape)

  def links(self, axis: int) -> int:
    """Effective number of neighbours of a chip along an axis: 2 on a ring."""
    return 2 if self.shape[axis] % self.chip.wraps == 0 else 1


TOPOLOGIES = tuple(
  Topology(chip, shape) for chip in CHIPS for shape in chip.slices
)


AnyTopology: TypeAlias = Topology | GpuTopology


def find_topology(name: str) -> AnyTopology:
  """Returns the slice with a name, covrl's or Google's, or GPUs of hosts.

  Raises:
    ValueError: if the name is unknown; the message lists the known ones.

  >>> find_topology('v6e-8') == find_topology('v6e:2x4')
  True
  >>> find_topology('h100:4x8').chips
  32
  """
  return gpus.find_gpus(name) if gpus.is_gpu(name) else find_tpus(name)


def find_tpus(name: str) -> Topology:
  """Returns the slice of TPUs with a name.

  Raises:
    ValueError: if the name is unknown; the message lists the known ones, those
      of GPUs included.
  """
  for topology in TOPOLOGIES:
    if name in topology.names:
      return topology
  known = '; '.join(
    ', '.join(
      f'{each.name} ({" or ".join(each.names[1:])})'
      for each in TOPOLOGIES
      if each.chip is chip
    )
    for chip in CHIPS
  )
  raise ValueError(
    f'the topology must be one of {known}; {gpus.known_gpus()}; got {name!r}'
  )


def check_num_slices(topology: AnyTopology | None, num_slices: int) -> None:
  """Refuses a number of slices that a topology cannot have.

  Raises:
    ValueError: the number is not in [1, 1024], or not 1 for GPUs.
  """
  if not 1 <= num_slices <= MAX_SLICES:
    raise ValueError(
      f'num_slices must lie in [1, {MAX_SLICES}], got {num_slices}'
    )
  if isinstance(topology, GpuTopology) and num_slices > 1:
    raise ValueError(
      'num_slices must be 1 for GPUs, whose hosts are part of the topology '
      f'({topology.chip.name}:{num_slices}x8), got {num_slices}'
    )


def compile_only_devices(
  topology: AnyTopology, num_slices: int = 1
) -> list[Any]:
  """Returns devices that programs can be compiled for, not run on.

  Raises:
    ValueError: if libtpu, which contains the TPU compiler, or XLA's GPU compiler
      is not installed, or the number of slices is not one of the topology.
  """
  check_num_slices(topology, num_slices)
  if isinstance(topology, GpuTopology):
    return gpus.compile_only_gpus(topology)
  if importlib.util.find_spec('libtpu') is None:
    raise ValueError(
      'compiling for TPUs needs libtpu, which is not installed; on Linux'
      " x86-64, python -m pip install 'jax[tpu]' installs it"
    )
  _isolate_libtpu()
  from jax.experimental import topologies

  options: dict[str, Any] = {}
  if topology.chips < 4 or (topology.chip.axes == 2 and topology.chips < 8):
    # libtpu assumes four chips per host.
    bounds = [*topology.shape, 1, 1][:3]
    options['chips_per_host_bounds'] = tuple(bounds)
  if num_slices > 1:
    options['num_slices'] = num_slices
  description = topologies.get_topology_desc(
    platform='tpu', topology_name=topology.name, **options
  )
  return list(description.devices)


@functools.cache
def _isolate_libtpu() -> None:
  """Keeps libtpu from searching for TPUs and from locking its library."""
  for name, value in (
    ('TPU_SKIP_MDS_QUERY', '1'),
    ('TPU_WORKER_HOSTNAMES', 'localhost'),
    ('TPU_ACCELERATOR_TYPE', 'v5p-8'),
    ('ALLOW_MULTIPLE_LIBTPU_LOAD', '1'),
  ):
    os.environ.setdefault(name, value)


@contextlib.contextmanager
def no_compilation_cache() -> Iterator[None]:
  """Context in which JAX's compilation cache is off.

  Programs for devices that are not attached could be written to the cache but
  not be read back.
  """
  import jax
  from jax.experimental.compilation_cache import compilation_cache

  was_enabled = jax.config.values['jax_enable_compilation_cache']
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()  # JAX checks for the cache only once.
  try:
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', was_enabled)
    compilation_cache.reset_cache()
