# SPDX-License-Identifier: Apache-2.0
"""Golden checkpoints and the outputs that transformers computed with them."""

import functools
import json
import pathlib
import shutil

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from covrl.pretrained import load_pretrained

MODELS = pathlib.Path(__file__).parents[1] / 'golden' / 'models'
NAMES = (  # directories of `MODELS`
  'qwen2',
  'qwen2_yarn',
  'qwen3',
  'llama2',
  'llama3',
  'mistral',
  'gemma2',
  'gemma3',
  'deepseek_math',
  'qwen3_moe',
  'mixtral',
)


@functools.cache
def golden(name):
  """Arrays that transformers computed with a checkpoint, by name."""
  with np.load(MODELS / name / 'golden.npz') as file:
    return dict(file)


@functools.cache
def loaded(name):
  """Policy and parameters in float32, loaded once per session."""
  return load_pretrained(MODELS / name, dtype='float32')


def tensors_of(directory):
  """Reads all tensors of a directory, from all of its files."""
  tensors = {}
  for file in sorted(directory.glob('*.safetensors')):
    tensors |= load_file(file)
  return tensors


def copy_of(name, tmp_path):
  """Copies a golden checkpoint, to be modified."""
  return pathlib.Path(shutil.copytree(MODELS / name, tmp_path / name))


def replace_tensors(directory, **tensors):
  """Replaces tensors of a checkpoint in one file; `None` deletes a tensor."""
  new = tensors_of(directory) | tensors
  new = {name: tensor for name, tensor in new.items() if tensor is not None}
  save_file(new, directory / 'model.safetensors')


def assert_trees_equal(a, b):
  """Asserts that two trees have equal arrays."""
  jax.tree.map(np.testing.assert_array_equal, a, b)


def edit_config(directory, **fields):
  """Replaces fields of a model's `config.json`."""
  file = directory / 'config.json'
  text = json.dumps(json.loads(file.read_text()) | fields)
  file.write_text(text)
