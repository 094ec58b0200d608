# SPDX-License-Identifier: Apache-2.0
"""`covrl convert`: weights from one kind of directory to another."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Literal

import jax
from etils import epath
from jaxtyping import PyTree

from covrl.data import JsonTokenizer, Tokenizer
from covrl.models import Policy
from covrl.pretrained.adapters import base_of, save_adapters
from covrl.pretrained.load import origin_of
from covrl.pretrained.orbax_cache import save_copy
from covrl.pretrained.policy import PretrainedPolicy
from covrl.pretrained.resolve import small_files
from covrl.pretrained.save import described_files, save_pretrained

Form = Literal['model', 'adapter', 'orbax']


def convert(
  policy: Policy,
  params: PyTree,
  target: epath.PathLike,
  *,
  form: Form,
  dtype: str | None = None,
  on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> None:
  """Writes a policy as a directory.

  Args:
    policy: adapters alone can be written of one only that was loaded from a
      directory.
    params: its parameters.
    target: must not exist, or be empty.
    form: `'model'`, as transformers loads it; `'adapter'`, its adapters as PEFT
      loads them; or `'orbax'`, a model that is read faster. In the first and
      the last adapters are merged.
    dtype: of what is written; as it is unless given.
    on_progress: called with the numbers of weight files written and in all.

  Raises:
    ValueError: as `save_pretrained` and `save_adapters`.
  """
  if form != 'adapter':
    policy, params = policy.base, policy.merge(params)
  if dtype is not None:
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
  if form == 'adapter':
    save_adapters(target, policy, params)
  elif form == 'model':
    save_pretrained(target, policy, params, on_progress=on_progress)
  else:
    save_copy(target, described_files(policy, params), params)


def with_files(policy: Policy, pretrained: str, tokenizer: Tokenizer) -> Policy:
  """A trained policy with the small files that belong to it.

  Args:
    policy: what was trained.
    pretrained: the model that it began as, whose files they are; if empty,
      they are made of the tokenizer.
    tokenizer: what it was trained with.

  Raises:
    ValueError: no file says what the tokenizer does.
  """
  if pretrained:
    return PretrainedPolicy(
      policy.config,
      files=small_files(base_of(pretrained)),
      origin=origin_of(pretrained),
    )
  is_json = isinstance(tokenizer, JsonTokenizer)
  if is_json and tokenizer.bos_id is not None:
    raise ValueError(
      'a tokenizer.json without a beginning token is required of a policy that'
      f' was made here, got one that begins texts with {tokenizer.bos_id}'
    )
  about = {
    'eos_token_id': list(tokenizer.end_ids),
    'pad_token_id': tokenizer.pad_id,
  }
  name = 'tokenizer.json' if is_json else 'tokenizer.model'
  files = {
    name: tokenizer.to_bytes(),
    'generation_config.json': json.dumps(about, indent=2).encode() + b'\n',
  }
  return PretrainedPolicy(policy.config, files=files)
