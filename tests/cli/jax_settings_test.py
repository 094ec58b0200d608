# SPDX-License-Identifier: Apache-2.0
"""The directory of compiled programs, writable or not, and missing devices."""

import errno
import importlib.util
import os
import pathlib
import runpy
import tempfile

import jax
import pytest

import covrl
from covrl.cli import jax_settings
from covrl.cli.errors import is_refusal, report_error
from covrl.exit_codes import Exit

FIELDS = (
  'jax_compilation_cache_dir',
  'jax_enable_compilation_cache',
  'jax_persistent_cache_min_compile_time_secs',
)


@pytest.fixture(autouse=True)
def settings(monkeypatch):
  """Sets one device and JAX's settings of a new process; restores them."""
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  values_before = {name: jax.config.values[name] for name in FIELDS}
  jax.config.update('jax_enable_compilation_cache', True)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)
  yield
  for name, value in values_before.items():
    jax.config.update(name, value)


def reads_and_writes():
  """Whether JAX reads, and whether it writes compiled programs."""
  min_compile_time = jax.config.values[
    'jax_persistent_cache_min_compile_time_secs'
  ]
  return jax.config.values[
    'jax_enable_compilation_cache'
  ], min_compile_time < 1e9


def test_a_writable_directory_is_used_silently(monkeypatch, tmp_path, capsys):
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'a' / 'b'))
  jax_settings.use_compilation_cache()
  assert reads_and_writes() == (True, True)
  assert list((tmp_path / 'a' / 'b').iterdir()) == []
  assert capsys.readouterr().err == ''


@pytest.mark.parametrize(
  ('error_number', 'cause'),
  [
    (errno.EROFS, 'read-only file system'),
    (errno.ENOSPC, 'no space left on device'),
    (errno.EACCES, 'permission denied'),
  ],
)
def test_a_directory_that_cannot_be_written_is_read_only(
  monkeypatch, tmp_path, capsys, error_number, cause
):
  def fail(**options):
    raise OSError(error_number, os.strerror(error_number))

  monkeypatch.setattr(tempfile, 'TemporaryFile', fail)
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path))
  jax_settings.use_compilation_cache()
  assert reads_and_writes() == (True, False)
  assert capsys.readouterr().err == (
    f'covrl: compiled programs are not kept: {tmp_path} cannot be written:'
    f' {cause}\n'
  )


def test_an_unusable_cache_directory_is_reported_and_not_used(
  monkeypatch, tmp_path, capsys
):
  (tmp_path / 'file').touch()
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'file'))
  jax_settings.use_compilation_cache()
  assert reads_and_writes() == (False, False)
  assert 'file cannot be written: file exists\n' in capsys.readouterr().err

  def no_home():
    raise RuntimeError('no home')

  monkeypatch.setattr(pathlib.Path, 'home', no_home)
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
  jax_settings.use_compilation_cache()
  assert reads_and_writes()[0] is False
  assert capsys.readouterr().err == (
    'covrl: compiled programs are not kept: there is no home directory\n'
  )


@pytest.mark.parametrize(
  ('error', 'cause'),
  [
    (
      RuntimeError("Unable to initialize backend 'tpu': none\nSee ..."),
      "Unable to initialize backend 'tpu': none",
    ),
    # JAX's error if no other backend is left.
    (AssertionError(), 'none, with JAX_PLATFORMS=cuda'),
  ],
)
def test_missing_devices_are_reported_in_one_sentence(
  monkeypatch, error, cause
):
  def fail():
    raise error

  monkeypatch.setattr(jax, 'device_count', fail)
  monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
  with pytest.raises(RuntimeError) as caught:
    jax_settings.use_compilation_cache()
  assert str(caught.value) == f'JAX must find its devices, got: {cause}'
  assert is_refusal(caught.value)


def test_errors_of_compiled_programs_are_not_refusals():
  """JAX leaves its own frames out, so that the last one may be covrl's."""
  source = 'def call(error):\n  raise error'
  code = compile(source, covrl.__file__, 'exec')
  exec(code, namespace := {})
  for error, refused in (
    (jax.errors.JaxRuntimeError('INTERNAL: failed'), False),
    (RuntimeError('INTERNAL: failed'), True),
  ):
    with pytest.raises(RuntimeError) as caught:
      namespace['call'](error)
    assert is_refusal(caught.value) == refused


def test_a_failing_device_is_reported_in_one_sentence(tmp_path, capsys):
  error = OSError(errno.EIO, os.strerror(errno.EIO), str(tmp_path / 'a'))
  assert report_error(error) == Exit.STORAGE
  assert capsys.readouterr().err == (
    f'covrl: {tmp_path / "a"} cannot be read: input/output error\n'
  )
  # A file that a recipe lacks is a mistake in the recipe.
  assert report_error(FileNotFoundError(errno.ENOENT, 'none', 'a')) is None


def test_invalid_settings_of_jax_are_reported_in_one_sentence(
  monkeypatch, capsys
):
  settings_of_jax = importlib.util.find_spec('jax._src.config')
  assert settings_of_jax is not None
  assert settings_of_jax.origin is not None
  monkeypatch.setenv('JAX_ENABLE_X64', 'maybe')
  with pytest.raises(ValueError, match='maybe') as caught:
    runpy.run_path(settings_of_jax.origin)
  assert report_error(caught.value) == Exit.REFUSED
  assert capsys.readouterr().err == (
    "covrl: settings of JAX must be valid, got: invalid truth value 'maybe' for"
    " environment 'JAX_ENABLE_X64'\n"
  )


@pytest.mark.parametrize(
  ('setting', 'sentence'),
  [
    (lambda: jax.debug_nans(True), 'JAX_DEBUG_NANS must be False'),
    (lambda: jax.disable_jit(), 'JAX_DISABLE_JIT must be False'),
    (lambda: jax.checking_leaks(), 'JAX_CHECK_TRACER_LEAKS must be False'),
    (lambda: jax.enable_x64(True), 'JAX_ENABLE_X64 must be False'),
    (
      lambda: jax.numpy_rank_promotion('raise'),
      'JAX_NUMPY_RANK_PROMOTION must be allow or warn',
    ),
    (
      lambda: jax.numpy_dtype_promotion('strict'),
      'JAX_NUMPY_DTYPE_PROMOTION must be standard',
    ),
    (
      lambda: jax.transfer_guard_host_to_device('disallow'),
      'JAX_TRANSFER_GUARD_HOST_TO_DEVICE must be None or allow',
    ),
  ],
)
def test_settings_that_programs_do_not_run_with_are_refused(setting, sentence):
  jax_settings.check_settings(trains=True)
  with setting(), pytest.raises(ValueError, match=sentence) as caught:
    jax_settings.prepare_to_run(trains=True)
  assert report_error(caught.value) == Exit.REFUSED


def test_floats_of_64_bits_are_refused_in_training_only():
  with jax.enable_x64(True):
    jax_settings.check_settings()
    with pytest.raises(ValueError, match='JAX_ENABLE_X64 must be False'):
      jax_settings.check_settings(trains=True)
