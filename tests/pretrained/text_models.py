# SPDX-License-Identifier: Apache-2.0
"""Tiny models with a tokenizer and a chat template, and adapters on them."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp

from covrl.models import Lora, Policy, tiny
from covrl.models.lora import split_adapters
from covrl.pretrained import load_policy, save_adapters, save_pretrained

TOKENIZERS = pathlib.Path(__file__).parents[1] / 'golden' / 'tokenizers'
# Ids of <|endoftext|>, <|im_start|> and <|im_end|>.
END_OF_TEXT, TURN_START, TURN_END = 300, 301, 302


def save_text_model(directory, kind='bytes', **files):
  """Saves random weights beside a golden tokenizer.

  Args:
    directory: the new directory.
    kind: the golden tokenizer.
    **files: fields of further JSON files, by name.
  """
  policy = Policy(tiny({'bytes': 320, 'pieces': 330}[kind]))
  save_pretrained(directory, policy, policy.init(jax.random.key(0)))
  for file in (TOKENIZERS / kind).iterdir():
    if file.name not in ('config.json', 'golden.json'):
      shutil.copy(file, directory)
  for name, fields in files.items():
    (directory / f'{name}.json').write_text(json.dumps(fields))
  return directory


def save_text_adapters(directory, model):
  """Saves adapters of ones on a model."""
  policy = load_policy(model)
  config = dataclasses.replace(policy.config, lora=Lora(rank=1, alpha=1.0))
  policy = dataclasses.replace(policy, config=config)
  _, adapters = split_adapters(policy.abstract_params())
  adapters = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), adapters)
  save_adapters(directory, policy, adapters)
  return directory


def edit(file, **fields):
  """Replaces fields of a JSON file, or creates it."""
  old_fields = json.loads(file.read_text()) if file.exists() else {}
  file.write_text(json.dumps(old_fields | fields))


def swap_letters(file):
  """Swaps the ids of two letters of a tokenizer.json."""
  fields = json.loads(file.read_text())
  vocab = fields['model']['vocab']
  vocab['a'], vocab['b'] = vocab['b'], vocab['a']
  file.write_text(json.dumps(fields))


def remove_character(file, character):
  """Removes the token of a character from a tokenizer.json, but not its id."""
  fields = json.loads(file.read_text())
  model = json.dumps(fields['model'], ensure_ascii=False)
  fields['model'] = json.loads(model.replace(character, '\ue000'))
  file.write_text(json.dumps(fields))
