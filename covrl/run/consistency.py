# SPDX-License-Identifier: Apache-2.0
"""Checks that all processes have the same code, config and data.

It also checks that a run can have this number of processes.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import pathlib
import platform
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from covrl.config import Config, ConfigError, Recipe, flatten
from covrl.config.divisors import divisor_hint, multiples
from covrl.data import ProblemSource
from covrl.data.fingerprints import problems_fingerprint
from covrl.data.problems import source_fingerprint
from covrl.parallel import distributed, xla_flags

# Libraries whose versions change the numbers of a run.
_LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'grain')
# Settings of JAX that change them; environment variables may set these. Not every
# version of JAX has all of them.
_SETTINGS = (
  'jax_allow_f16_reductions',
  'jax_default_matmul_precision',
  'jax_default_prng_impl',
  'jax_disable_jit',
  'jax_disable_most_optimizations',
  'jax_enable_x64',
  'jax_exec_time_optimization_effort',
  'jax_high_dynamic_range_gumbel',
  'jax_memory_fitting_effort',
  'jax_memory_fitting_level',
  'jax_numpy_dtype_promotion',
  'jax_optimization_level',
  'jax_random_seed_offset',
  'jax_threefry_partitionable',
  'jax_use_direct_linearize',
  'jax_use_shardy_partitioner',
)
# Beginnings of the names of packages with compilers and kernels of accelerators.
_ACCELERATOR_PREFIXES = ('jax-cuda', 'libtpu', 'nvidia-')
# Variables that XLA's CPU client reads, of which the first valid one counts: how
# many threads share an operation.
_CPU_THREADS = ('PJRT_NPROC', 'NPROC')
# Fields that may change when a run is resumed, and change the last bits: another
# program is compiled.
_ROUNDING_FIELDS = ('logging.diagnostics_every',)
# Keys of the processor and its instructions in `versions`, in which the hosts of a run
# may differ.
_CPU, _INSTRUCTIONS = 'cpu', 'cpu instructions'
# Beginnings of the names of instruction sets that XLA compiles for.
_INSTRUCTION_PREFIXES = ('avx', 'amx', 'f16c', 'fma', 'sse', 'asimd', 'sve')


def check_processes(recipe: Recipe, workdir: str) -> None:
  """Compares code, recipe and directory over all processes.

  Args:
    recipe: the recipe that this process has loaded.
    workdir: the run directory that this process was given.

  Raises:
    ConfigError: on every process; names the process and the field that differ,
      or a batch size that the processes cannot share.
  """
  check_process_count(recipe.config, distributed.process_count())
  if distributed.process_count() == 1:
    return
  installed = {
    n: text for n, text in versions().items() if n not in (_CPU, _INSTRUCTIONS)
  }
  _compare('versions and settings', [*installed.values()], [*installed])
  fields = flatten(recipe.config)
  for subject, parts in (
    ('code', [_source_code()]),
    ('config file', [''.join(recipe.sources.values()), *fields]),
    ('--workdir', [workdir]),
  ):
    _compare(subject, [''.join(parts)], [subject])
  _compare('configuration', [*map(str, fields.values())], [*fields])


def check_problems(subject: str, source: ProblemSource) -> None:
  """Compares the number and fingerprint of problems over all processes.

  Of a source without a fingerprint some problems are compared.

  Args:
    subject: what the problems are, for the error.
    source: the problems of this process.

  Raises:
    ConfigError: on every process; names the process that differs.
  """
  if distributed.process_count() > 1:
    fingerprint = source_fingerprint(source) or _sample_fingerprint(source)
    _compare(subject, [f'{len(source)} {fingerprint}'], ['set'])


def _sample_fingerprint(source: ProblemSource) -> str:
  """Returns a digest of problems at equal distances."""
  indices = np.unique(np.linspace(0, len(source) - 1, 16).astype(int))
  return problems_fingerprint(source[int(index)] for index in indices)


def check_inputs_of_processes(fingerprints: Mapping[str, str]) -> None:
  """Compares the inputs of a run over all processes, each of which reads its own.

  Args:
    fingerprints: the fingerprint of each input of this process by its name.

  Raises:
    ConfigError: on every process; names the process and the input that differ.
  """
  if distributed.process_count() == 1:
    return
  names = sorted(fingerprints)
  _compare('inputs', [', '.join(names)], ['set of inputs'])
  _compare(
    'inputs',
    [fingerprints[name] for name in names],
    [f'fingerprint of {name}' for name in names],
  )


def check_programs(programs: Mapping[str, jax.stages.Traced]) -> None:
  """Compares programs over all processes, such as the update with loss and chains.

  Those that call Python have texts of their own on each process and are left out.

  Args:
    programs: traced programs of this process by name.

  Raises:
    ConfigError: on every process; names the process and the program that differ.
  """
  if distributed.process_count() == 1:
    return
  texts = [traced.lower().as_text() for traced in programs.values()]
  texts = ['' if 'callback' in text else text for text in texts]
  _compare('programs', texts, [*programs])


def check_process_count(config: Config, processes: int) -> None:
  """Checks that a run can have this number of processes.

  Raises:
    ConfigError: a batch size is not a multiple of `processes`, or groups are
      carried over in a run of several.
  """
  if config.rollout.carried_groups and processes > 1:
    raise ConfigError(
      'rollout.carried_groups must be 0 with several processes, got'
      f' {config.rollout.carried_groups} with {processes}'
    )
  sizes = {
    'rollout.prompts_per_iteration': config.rollout.prompts_per_iteration
  }
  if config.warm_start.steps:
    sizes['warm_start.batch_size'] = config.warm_start.batch_size
  for name, size in sizes.items():
    if size % processes:
      raise ConfigError(
        f'{name} must be a multiple of the {processes} processes, got {size}'
        f'{divisor_hint(name, multiples(processes, size))}'
      )


def _compare(subject: str, values: Sequence[str], names: Sequence[str]) -> None:
  """Compares texts over all processes by their checksums.

  Args:
    subject: a name for all of the texts, for the error.
    values: the texts.
    names: the name of each text, for the error.
  """
  local_checksums = np.array(
    [[zlib.crc32(text.encode()) for text in values]], np.uint32
  )
  checksums = distributed.gather_rows(local_checksums)
  for process, row in enumerate(checksums):
    differing = np.flatnonzero(row != checksums[0])
    if differing.size:
      name = names[differing[0]]
      raise ConfigError(
        f'all processes must have the same {subject}, got another {name} on'
        f' process {process} than on process 0'
      )


def versions(config: Config | None = None) -> dict[str, str]:
  """Returns the versions of Python, covrl and numerical libraries.

  The devices, their compilers and kernels, the flags of XLA and the settings of JAX
  that change the numbers of a run are included. So is the number of processes, since
  sums over the same devices have another order where they are of other processes. So
  are the processor and threads if it computes: XLA compiles for the instructions of
  the processor, and splits sums among threads.

  Args:
    config: a run's configuration, of which fields that may change when it is
      resumed and change its last bits are included.
  """
  result = {'python': platform.python_version(), 'covrl': ''}
  # A checkout of covrl need not be installed.
  with contextlib.suppress(importlib.metadata.PackageNotFoundError):
    result['covrl'] = importlib.metadata.version('covrl')
  result |= library_versions()
  device = jax.devices()[0]
  result['devices'] = f'{jax.device_count()} × {device.device_kind}'
  result['processes'] = str(jax.process_count())
  if device.platform == 'cpu':
    processor = _cpu_field('model name') or platform.machine()
    result[_CPU] = f'{processor}, {_cpu_threads()} threads'
    # Virtual machines of several kinds of processors may have one name.
    result[_INSTRUCTIONS] = ' '.join(_instruction_sets())
  else:
    # Versions of libtpu, or of CUDA and its driver.
    result['platform'] = ' '.join(device.client.platform_version.split())
    result |= _accelerator_versions()
  if config is not None:
    fields = flatten(config)
    result |= {name: str(fields[name]) for name in _ROUNDING_FIELDS}
  return result | {'xla_flags': xla_flags.user_flags()}


def library_versions() -> dict[str, str]:
  """Returns the versions of numerical libraries, and settings of JAX."""
  return {n: importlib.metadata.version(n) for n in _LIBRARIES} | {
    n: str(getattr(jax.config, n, '')) for n in _SETTINGS
  }


def _accelerator_versions() -> dict[str, str]:
  """Returns the versions of installed compilers and kernels of GPUs and TPUs."""
  names = [
    str(package.metadata['Name'])
    for package in importlib.metadata.distributions()
  ]
  return {
    name: importlib.metadata.version(name)
    for name in sorted(names)
    if name.startswith(_ACCELERATOR_PREFIXES)
  }


def _instruction_sets() -> list[str]:
  """Returns the names of the processor's instruction sets for numbers, sorted."""
  names = (_cpu_field('flags') or _cpu_field('Features')).split()
  return sorted(n for n in names if n.startswith(_INSTRUCTION_PREFIXES))


def _cpu_field(field: str) -> str:
  """Returns a field of the processor's description, empty if it has none."""
  with contextlib.suppress(OSError):
    text = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8')
    for line in text.splitlines():
      name, _, value = line.partition(':')
      if name.strip() == field:
        return value.strip()
  return ''


def _cpu_threads() -> int:
  """Returns the number of threads that XLA's CPU client uses."""
  for name in _CPU_THREADS:
    with contextlib.suppress(KeyError, ValueError):
      return max(1, int(os.environ[name]))
  if sys.platform == 'linux':
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def check_versions(
  metadata: Mapping[str, Any] | None,
  warn: Callable[[str], object],
  config: Config | None = None,
) -> None:
  """Warns if a checkpoint was written by versions other than the installed ones.

  Args:
    metadata: metadata of the checkpoint to resume from; `None` without one.
    warn: receives a sentence about the versions that differ.
    config: the run's configuration; see `versions`.
  """
  saved_versions = (metadata or {}).get('versions', {})
  changed: list[str] = []
  for name, version in versions(config).items():
    saved_version = saved_versions.get(name, version)
    if saved_version == version:
      continue
    if name == _INSTRUCTIONS:
      before, now = set(saved_version.split()), set(version.split())
      saved_version = ' '.join(sorted(before - now))
      version = ' '.join(sorted(now - before))
    changed.append(
      f'{name} {saved_version or "none"} (now {version or "none"})'
    )
  if changed:
    warn(
      f'the checkpoint was written with {", ".join(changed)}: the resumed run may'
      ' differ from an uninterrupted one'
    )


def _source_code() -> str:
  """Returns covrl's source text."""
  package = pathlib.Path(__file__).parents[1]
  return ''.join(
    file.read_text(encoding='utf-8') for file in sorted(package.rglob('*.py'))
  )
