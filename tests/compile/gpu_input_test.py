# SPDX-License-Identifier: Apache-2.0
"""Bad input of `covrl compile` for GPUs: one sentence each, no compiler needed."""

import os
import pathlib
import types
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from covrl.cli import main
from covrl.compile.compiling import compile_program
from covrl.compile.network import Interconnect
from covrl.parallel import gpus, topologies
from covrl.parallel.gpus import find_gpus
from covrl.parallel.xla_flags import GPU_ENVIRONMENT

RECIPE = pathlib.Path(__file__).parent / 'recipes' / 'small.py'
CACHE = pathlib.Path(__file__).parents[2] / '.jax_cache'
INSTALLED = {
  'jaxlib': '0.10.2',
  'jax-cuda12-plugin': '0.10.2',
  'jax-cuda12-pjrt': '0.10.2',
  'nvidia-cudnn-cu12': '9.10.0',
}


@pytest.fixture
def refusal(capsys, monkeypatch):
  """Runs `covrl compile`; returns the sentence that it ends with."""
  # The command line sets them for the process.
  monkeypatch.setenv('XLA_FLAGS', os.environ['XLA_FLAGS'])
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(CACHE))
  for name in GPU_ENVIRONMENT:
    monkeypatch.setenv(name, '1')

  def run(*arguments):
    with pytest.raises(SystemExit) as ended:
      main(['compile', f'--config={RECIPE}', *arguments])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith('covrl: ')
    assert error.count('\n') == 1
    return error

  return run


@pytest.mark.parametrize(
  ('name', 'known'),
  [
    ('h800:8', 'h100, h200, b200'),
    ('h100:3', ':1, :2, :4 or :8 GPUs of one host'),
    ('h100:2x4', ':Nx8 of N hosts'),
  ],
)
def test_refuses_unknown_gpus_and_shapes(refusal, name, known):
  error = refusal(f'--topology={name}')
  assert known in error
  assert error.endswith(f'got {name!r}\n')


@pytest.mark.parametrize(
  ('changes', 'sentence'),
  [
    (
      {'jax-cuda12-plugin': None},
      'compiling for GPUs needs jax-cuda12-plugin, which is not installed; on '
      "Linux, python -m pip install 'covrl[gpu-compile]' installs everything\n",
    ),
    (
      {'nvidia-cudnn-cu12': None},
      'compiling for GPUs needs nvidia-cudnn-cu12, which is not installed',
    ),
    (
      {'jax-cuda12-plugin': '0.9.0'},
      'jax-cuda12-plugin must have the version of jaxlib, 0.10.2, got 0.9.0',
    ),
  ],
)
def test_refuses_missing_packages_and_other_versions(
  refusal, monkeypatch, changes, sentence
):
  installed = INSTALLED | changes
  monkeypatch.setattr(
    gpus, '_installed', lambda: {k: v for k, v in installed.items() if v}
  )
  assert sentence in refusal('--topology=h100:8')


def test_refuses_a_mesh_that_does_not_multiply_to_the_gpus(
  refusal, monkeypatch
):
  monkeypatch.setattr(
    topologies, 'compile_only_devices', lambda *_: jax.devices()
  )
  error = refusal('--topology=h100:8', '--config.mesh.fsdp=3')
  assert 'a mesh must multiply to the 8 devices there are, got ' in error


def test_refuses_products_in_8_bit_floats_on_a_gpu_without_them():
  x = jax.ShapeDtypeStruct((8, 8), jnp.float8_e4m3fn)
  traced = jax.jit(
    lambda a, b: jnp.dot(a, b, preferred_element_type=jnp.float32)
  ).trace(x, x)
  work: Any = types.SimpleNamespace(
    network=Interconnect(find_gpus('a100:8'), [])
  )
  with pytest.raises(ValueError, match='a100 has none of 8-bit floats, got f8'):
    compile_program(work, traced)
