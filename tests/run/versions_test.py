# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of other versions, devices and settings are reported."""

import importlib.metadata
import os
import pathlib
import types

import jax
import pytest

from covrl.run import consistency
from covrl.run.consistency import check_versions, versions


def test_a_checkpoint_of_other_versions_is_reported():
  warnings = []
  current = versions()
  for notes in (None, {}, {'versions': {}}, {'versions': current}):
    check_versions(notes, warnings.append)
  assert warnings == []
  saved = current | {'jax': '0.1', 'flax': '0.2', 'later': '1'}
  check_versions({'versions': saved}, warnings.append)
  (text,) = warnings
  assert (
    f'jax 0.1 (now {current["jax"]}), flax 0.2 (now {current["flax"]}):' in text
  )
  assert 'may differ from an uninterrupted one' in text


def test_a_checkpoint_of_other_settings_of_jax_is_reported():
  warnings = []
  current = versions()
  saved = current | {'jax_default_prng_impl': 'rbg'}
  check_versions({'versions': saved}, warnings.append)
  (text,) = warnings
  assert 'written with jax_default_prng_impl rbg (now threefry2x32)' in text


def test_a_checkpoint_of_other_devices_or_flags_is_reported(monkeypatch):
  warnings = []
  monkeypatch.setenv('XLA_FLAGS', '--xla_dump_to=a')
  current = versions()
  assert current['devices'] == '8 × cpu'
  monkeypatch.setenv('XLA_FLAGS', '--xla_dump_to=b')
  check_versions({'versions': current}, warnings.append)
  assert warnings == []
  monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_enable_fast_math=true')
  check_versions(
    {'versions': current | {'devices': '1 × cpu'}}, warnings.append
  )
  (text,) = warnings
  assert text.startswith(
    'the checkpoint was written with devices 1 × cpu (now 8 × cpu), xla_flags'
    ' none (now --xla_cpu_enable_fast_math=true): the resumed run may differ'
  )


def test_a_checkpoint_of_other_compilers_of_an_accelerator_is_reported(
  monkeypatch,
):
  client = types.SimpleNamespace(platform_version='PJRT C API\nTFRT TPU v4')
  device = types.SimpleNamespace(
    platform='tpu', device_kind='TPU v4', client=client
  )
  monkeypatch.setattr(jax, 'devices', lambda: [device])
  warnings, current = [], versions()
  assert current['platform'] == 'PJRT C API TFRT TPU v4'
  assert current['libtpu'] == importlib.metadata.version('libtpu')
  saved = current | {'platform': 'TFRT TPU v3', 'libtpu': '0.0.1'}
  check_versions({'versions': saved}, warnings.append)
  (text,) = warnings
  assert text.startswith(
    'the checkpoint was written with platform TFRT TPU v3 (now PJRT C API TFRT TPU'
    f' v4), libtpu 0.0.1 (now {current["libtpu"]}): the resumed run may differ'
  )


def test_a_checkpoint_of_another_number_of_processes_is_reported():
  """Sums over the same devices have another order, and other last bits."""
  warnings = []
  current = versions()
  saved = current | {'processes': '2'}
  check_versions({'versions': saved}, warnings.append)
  (text,) = warnings
  assert text.startswith('the checkpoint was written with processes 2 (now 1):')
  # Earlier checkpoints have no number.
  del saved['processes']
  check_versions({'versions': saved}, warnings.append)
  assert len(warnings) == 1


@pytest.mark.parametrize(
  ('name', 'current', 'saved'),
  [
    ('JAX_RANDOM_SEED_OFFSET', '0', '3'),
    ('JAX_HIGH_DYNAMIC_RANGE_GUMBEL', 'False', 'True'),
    ('JAX_OPTIMIZATION_LEVEL', 'UNKNOWN', 'O1'),
  ],
)
def test_settings_of_jax_from_the_environment_are_reported(
  name, current, saved
):
  """With another `JAX_RANDOM_SEED_OFFSET` a resumed run draws other numbers."""
  setting, warnings = name.lower(), []
  current_versions = versions()
  assert current_versions[setting] == current
  check_versions(
    {'versions': current_versions | {setting: saved}}, warnings.append
  )
  (text,) = warnings
  assert f'written with {setting} {saved} (now {current})' in text


@pytest.mark.parametrize('machine', ['x86', 'arm'])
def test_a_checkpoint_of_another_processor_of_the_same_name_is_reported(
  machine, tmp_path, monkeypatch
):
  """Virtual machines have the names of several generations of processors."""
  field = {'x86': 'flags', 'arm': 'Features'}[machine]
  warnings, file = [], tmp_path / 'cpuinfo'

  def versions_with(instructions):
    file.write_text(f'model name\t: AMD EPYC\n{field}\t\t: {instructions}\n')
    return versions()

  path = pathlib.Path
  monkeypatch.setattr(
    consistency.pathlib,
    'Path',
    lambda name: file if name == '/proc/cpuinfo' else path(name),
  )
  saved = versions_with('fpu sve avx2 avx512f')
  versions_with('avx2 sve')
  check_versions({'versions': saved}, warnings.append)
  (text,) = warnings
  assert text.startswith(
    'the checkpoint was written with cpu instructions avx512f (now none): the'
    ' resumed run may differ'
  )
  versions_with('avx512f avx2 sve mmx')
  check_versions({'versions': saved}, warnings.append)
  assert len(warnings) == 1


def clear_threads(monkeypatch):
  for name in ('PJRT_NPROC', 'NPROC'):
    monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize('variable', ['PJRT_NPROC', 'NPROC'])
def test_a_checkpoint_of_other_threads_of_a_processor_is_reported(
  variable, monkeypatch
):
  """XLA splits sums among threads, whose number changes their rounding."""
  warnings = []
  clear_threads(monkeypatch)
  current = versions()
  assert current['cpu'].endswith(' threads')
  monkeypatch.setenv(variable, '77')
  check_versions({'versions': current}, warnings.append)
  (text,) = warnings
  assert f'written with cpu {current["cpu"]} (now ' in text
  assert ', 77 threads)' in text


@pytest.mark.skipif(
  not hasattr(os, 'sched_setaffinity'), reason='needs a choice of cores'
)
def test_fewer_cores_are_fewer_threads(monkeypatch):
  clear_threads(monkeypatch)
  cores = os.sched_getaffinity(0)
  try:
    os.sched_setaffinity(0, {min(cores)})
    assert versions()['cpu'].endswith(', 1 threads')
  finally:
    os.sched_setaffinity(0, cores)
