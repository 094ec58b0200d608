# SPDX-License-Identifier: Apache-2.0
"""Exports policies as Hugging Face, PEFT or Orbax directories."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Literal

import jax
from etils import epath
from jax.typing import DTypeLike
from jaxtyping import PyTree

from covrl.data import JsonTokenizer, Tokenizer
from covrl.models import Policy
from covrl.pretrained.adapters import base_model_directory, save_adapters
from covrl.pretrained.load import dtype_name, model_origin
from covrl.pretrained.orbax_cache import save_orbax
from covrl.pretrained.policy import PretrainedPolicy
from covrl.pretrained.resolve import read_config_files
from covrl.pretrained.save import model_files, save_pretrained

OutputFormat = Literal['model', 'adapter', 'orbax']


def convert(
  policy: Policy,
  params: PyTree,
  target: epath.PathLike,
  *,
  output_format: OutputFormat,
  dtype: DTypeLike | None = None,
  on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> None:
  """Writes a policy to a directory.

  Args:
    policy: the policy; for `'adapter'`, one with adapters on a pretrained
      model.
    params: the policy's parameters.
    target: must not exist, or be an empty directory.
    output_format: `'model'` for transformers, `'adapter'` for the LoRA adapters
      alone as PEFT loads them, or `'orbax'` for a model that `load_pretrained`
      loads faster. Adapters are merged into the weights except in `'adapter'`.
    dtype: floating-point dtype of the written weights, such as `jnp.float32` or
      `'bfloat16'`; that of `params` unless given.
    on_progress: called with the number of weight files written so far and the
      total number.

  Raises:
    ValueError: see `save_pretrained` and `save_adapters`.
  """
  if output_format != 'adapter':
    policy, params = policy.base, policy.merge(params)
  if dtype is not None:
    name = dtype_name(dtype)
    params = jax.tree.map(lambda leaf: leaf.astype(name), params)
  if output_format == 'adapter':
    save_adapters(target, policy, params)
  elif output_format == 'model':
    save_pretrained(target, policy, params, on_progress=on_progress)
  else:
    save_orbax(target, model_files(policy, params), params)


def as_pretrained(
  policy: Policy, pretrained: str, tokenizer: Tokenizer
) -> PretrainedPolicy:
  """Adds the files to a trained policy that an export needs.

  Args:
    policy: the trained policy.
    pretrained: the model that training started from, whose configuration and
      tokenizer files are used; empty to make them from `tokenizer`.
    tokenizer: the tokenizer of the training run.

  Raises:
    ValueError: the tokenizer adds a BOS token, which no file would state.
  """
  if pretrained:
    return PretrainedPolicy(
      policy.config,
      files=read_config_files(base_model_directory(pretrained)),
      origin=model_origin(pretrained),
    )
  is_json = isinstance(tokenizer, JsonTokenizer)
  if is_json and tokenizer.bos_id is not None:
    raise ValueError(
      'a tokenizer.json without a beginning token is required of a policy that'
      f' was made here, got one that begins texts with {tokenizer.bos_id}'
    )
  generation_config = {
    'eos_token_id': list(tokenizer.end_ids),
    'pad_token_id': tokenizer.pad_id,
  }
  name = 'tokenizer.json' if is_json else 'tokenizer.model'
  text = json.dumps(generation_config, indent=2) + '\n'
  files = {
    name: tokenizer.to_bytes(),
    'generation_config.json': text.encode(),
  }
  return PretrainedPolicy(policy.config, files=files)
