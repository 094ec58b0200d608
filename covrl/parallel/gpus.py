# SPDX-License-Identifier: Apache-2.0
"""NVIDIA GPUs and hosts of them by name, with their specifications.

`h100:8` is a host of eight H100, `h100:4x8` four such hosts. XLA's GPU compiler
needs no GPU: it takes a description of one, and compiles for any number of them.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

# Share of a GPU's memory that JAX reserves; see `covrl.parallel.xla_flags`. The
# rest is for CUDA's context, NCCL's buffers and the code of kernels.
MEMORY_SHARE = 0.92
# Distributions that compile without a GPU: the compiler, and cuDNN, which plans fused
# attention. They come in two versions, for CUDA 12 and CUDA 13.
_PLUGINS = ('jax-cuda12-plugin', 'jax-cuda13-plugin')
_INSTALL_COMMAND = "python -m pip install 'covrl[gpu-compile]'"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
  """A kind of GPU.

  Attributes:
    name: short name, as in `h100:8`.
    kind: `device_kind` of its JAX devices.
    capability: CUDA compute capability.
    memory: bytes of memory.
    bandwidth: memory bandwidth, bytes per second.
    flops: bfloat16 operations per second of dense matrix products.
    fp8: the same in 8-bit floats; `None` if it has no such products.
    tf32: the same in TF32, the default of float32 products.
    fp32: float32 operations per second without tensor cores.
    nvlink: bytes per second to the GPUs of its host, in one direction.
    network: bytes per second to other hosts, in one direction.
    cores: streaming multiprocessors.
    clock: highest clock rate, GHz.
    l2: bytes of the L2 cache.
    shared: bytes of shared memory per streaming multiprocessor.
    fp32_units: float32 units per streaming multiprocessor.
  """

  name: str
  kind: str
  capability: tuple[int, int]
  memory: int
  bandwidth: float
  flops: float
  fp8: float | None
  tf32: float
  fp32: float
  nvlink: float
  network: float
  cores: int
  clock: float
  l2: int
  shared: int
  fp32_units: int

  @property
  def hbm(self) -> int:
    """Bytes of memory available to a program."""
    return int(self.memory * MEMORY_SHARE)

  def rate(self, dtype: str) -> float:
    """Peak operations per second of matrix products of a type.

    Args:
      dtype: HLO's name of the factors' type; `'f32 highest'` for float32 products
        that must not be rounded to TF32.

    >>> find_gpus('h100:8').chip.rate('f32')
    494700000000000.0
    """
    if dtype.startswith('f8') and self.fp8 is not None:
      return self.fp8
    return {'f32': self.tf32, 'f32 highest': self.fp32}.get(dtype, self.flops)

  def description(self) -> str:
    """Returns the description that XLA's compiler takes in place of a GPU."""
    major, minor = self.capability
    # Tensor core instructions of one generation only, such as Hopper's wgmma.
    features = 'ACCELERATED_FEATURES' if major >= 9 else 'NONE'
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {self.shared}
  shared_memory_per_block_optin: {self.shared - 1024}
  threads_per_core_limit: 2048
  core_count: {self.cores}
  fpus_per_core: {self.fp32_units}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {int(self.bandwidth)}
  l2_cache_size: {self.l2}
  clock_rate_ghz: {self.clock}
  device_memory_size: {self.memory}
  cuda_compute_capability {{
    major: {major} minor: {minor} feature_extension: {features}
  }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{self.kind}"
"""


# Rates and links as NVIDIA publishes them, without sparsity; NVLink in one
# direction is half of the published sum. Memory, bandwidth, clocks and caches
# as the driver reports them, from the device descriptions in OpenXLA's
# `xla/backends/gpu/target_config/specs`.
GPUS = (
  # NVIDIA A100 datasheet; DGX A100: eight 200 Gb/s adapters for eight GPUs.
  Gpu(
    name='a100',
    kind='NVIDIA A100-SXM4-80GB',
    capability=(8, 0),
    memory=85_100_068_864,
    bandwidth=2039.04e9,
    flops=312e12,
    fp8=None,
    tf32=156e12,
    fp32=19.5e12,
    nvlink=300e9,
    network=25e9,
    cores=108,
    clock=1.41,
    l2=41_943_040,
    shared=167_936,
    fp32_units=64,
  ),
  # NVIDIA H100 datasheet, SXM; DGX H100: eight 400 Gb/s adapters.
  Gpu(
    name='h100',
    kind='NVIDIA H100 80GB HBM3',
    capability=(9, 0),
    memory=84_942_979_072,
    bandwidth=3352.32e9,
    flops=989.4e12,
    fp8=1978.9e12,
    tf32=494.7e12,
    fp32=66.9e12,
    nvlink=450e9,
    network=50e9,
    cores=132,
    clock=1.98,
    l2=52_428_800,
    shared=233_472,
    fp32_units=128,
  ),
  # NVIDIA H200 datasheet, SXM; DGX H200: eight 400 Gb/s adapters.
  Gpu(
    name='h200',
    kind='NVIDIA H200 141GB HBM3e',
    capability=(9, 0),
    memory=151_397_597_184,
    bandwidth=4800e9,
    flops=989.4e12,
    fp8=1978.9e12,
    tf32=494.7e12,
    fp32=66.9e12,
    nvlink=450e9,
    network=50e9,
    cores=132,
    clock=1.98,
    l2=52_428_800,
    shared=233_472,
    fp32_units=128,
  ),
  # NVIDIA HGX B200 and DGX B200 datasheets, per GPU.
  Gpu(
    name='b200',
    kind='NVIDIA B200',
    capability=(10, 0),
    memory=191_514_411_008,
    bandwidth=7672.32e9,
    flops=2250e12,
    fp8=4500e12,
    tf32=1100e12,
    fp32=75e12,
    nvlink=900e9,
    network=50e9,
    cores=148,
    clock=1.965,
    l2=132_644_864,
    shared=233_472,
    fp32_units=128,
  ),
)

# Numbers of GPUs of a topology with one host; each of several hosts has eight.
_GPUS_PER_HOST = (1, 2, 4, 8)
# Largest number of hosts of a topology.
_MAX_HOSTS = 512


class GpuTopology(NamedTuple):
  """GPUs of one or several hosts.

  Attributes:
    chip: the kind of GPU.
    hosts: number of hosts.
    per_host: GPUs of each host, all connected by NVLink.
  """

  chip: Gpu
  hosts: int
  per_host: int

  @property
  def platform(self) -> Literal['gpu']:
    """JAX's platform."""
    return 'gpu'

  @property
  def name(self) -> str:
    """Name, such as `h100:8` or `h100:4x8`."""
    hosts = f'{self.hosts}x' if self.hosts > 1 else ''
    return f'{self.chip.name}:{hosts}{self.per_host}'

  @property
  def accelerator(self) -> str:
    """NVIDIA's name of the GPU."""
    return self.chip.kind

  @property
  def chips(self) -> int:
    """Number of GPUs.

    >>> find_gpus('h100:4x8').chips
    32
    """
    return self.hosts * self.per_host

  def host(self, device: int) -> int:
    """Returns the host of a device, by the device's id."""
    return device // self.per_host


def known_gpus() -> str:
  """Returns the names of all topologies of GPUs, in words."""
  names = ', '.join(gpu.name for gpu in GPUS)
  return (
    f'{names}, each with :1, :2, :4 or :8 GPUs of one host or :Nx8 of N hosts'
  )


def is_gpu(name: str) -> bool:
  """Returns whether the name of a topology begins with that of a GPU."""
  return name.partition(':')[0] in {gpu.name for gpu in GPUS}


def find_gpus(name: str) -> GpuTopology:
  """Returns the GPUs with a name.

  Raises:
    ValueError: if the name is unknown; the message lists the known ones.

  >>> find_gpus('h100:4x8').hosts
  4
  """
  gpu_name, _, shape = name.partition(':')
  match = re.fullmatch(r'(?:([1-9]\d*)x)?([1-9]\d*)', shape)
  for gpu in GPUS:
    if gpu.name != gpu_name or match is None:
      continue
    hosts, per_host = int(match[1] or 1), int(match[2])
    has_whole_hosts = per_host == _GPUS_PER_HOST[-1] and hosts <= _MAX_HOSTS
    if has_whole_hosts or (hosts == 1 and per_host in _GPUS_PER_HOST):
      return GpuTopology(gpu, hosts, per_host)
  raise ValueError(
    f'the topology of GPUs must be one of {known_gpus()} (at most'
    f' {_MAX_HOSTS}), got {name!r}'
  )


def compile_only_gpus(topology: GpuTopology) -> list[Any]:
  """Returns devices that programs can be compiled for, not run on.

  Raises:
    ValueError: if the compiler or cuDNN is not installed, or the compiler is not
      of JAX's version.
  """
  check_compiler(_installed())
  from jax.experimental import topologies

  description = topologies.get_topology_desc(
    topology.chip.name,
    platform='cuda',
    topology=f'1x{topology.hosts}x{topology.per_host}',
    target_config=topology.chip.description(),
  )
  return list(description.devices)


def check_compiler(installed: Mapping[str, str]) -> None:
  """Checks that XLA's GPU compiler is installed and has jaxlib's version.

  Args:
    installed: versions of installed distributions by name.

  Raises:
    ValueError: if it is missing, if cuDNN is, or if versions differ.
  """
  plugins = [name for name in _PLUGINS if name in installed]
  missing = []
  if not plugins:
    missing.append(_PLUGINS[0])
  if not any(name.startswith('nvidia-cudnn') for name in installed):
    missing.append('nvidia-cudnn-cu12')
  if missing:
    raise ValueError(
      f'compiling for GPUs needs {" and ".join(missing)}, which '
      f'{"are" if len(missing) > 1 else "is"} not installed; on Linux, '
      f'{_INSTALL_COMMAND} installs everything'
    )
  jaxlib_version = installed.get('jaxlib')
  for plugin in plugins:
    for name in (plugin, plugin.replace('plugin', 'pjrt')):
      if installed.get(name) != jaxlib_version:
        raise ValueError(
          f'{name} must have the version of jaxlib, {jaxlib_version}, got '
          f'{installed.get(name)}; {_INSTALL_COMMAND} installs matching versions'
        )


def _installed() -> dict[str, str]:
  """Returns the versions of the distributions that compile for GPUs."""
  names = ['jaxlib', 'nvidia-cudnn-cu12', 'nvidia-cudnn-cu13']
  for plugin in _PLUGINS:
    names += [plugin, plugin.replace('plugin', 'pjrt')]
  versions: dict[str, str] = {}
  for name in names:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return versions
