# SPDX-License-Identifier: Apache-2.0
"""`covrl convert`: weights from one kind of directory to another."""

from __future__ import annotations

import pathlib
from typing import Literal

import jax
from jaxtyping import PyTree

from covrl.models import Policy
from covrl.pretrained.adapters import base_of, save_adapters
from covrl.pretrained.copies import save_copy
from covrl.pretrained.policy import PretrainedPolicy
from covrl.pretrained.reading import origin_of
from covrl.pretrained.resolve import small_files
from covrl.pretrained.writing import save_pretrained

Form = Literal['model', 'adapter', 'orbax']


def convert(
  policy: Policy,
  params: PyTree,
  target: str | pathlib.Path,
  *,
  form: Form,
  dtype: str | None = None,
) -> None:
  """Writes a policy as a directory.

  Args:
    policy: an Orbax copy, or adapters alone, can be written of one only that
      was loaded from a directory.
    params: its parameters.
    target: must not exist, or be empty.
    form: `'model'`, as transformers loads it; `'adapter'`, its adapters as PEFT
      loads them; or `'orbax'`, a model that is read faster. In the first and
      the last adapters are merged.
    dtype: of what is written; as it is unless given.

  Raises:
    ValueError: as `save_pretrained` and `save_adapters`; a copy of nothing is
      asked for.
  """
  if form != 'adapter':
    policy, params = policy.base, policy.merge(params)
  if dtype is not None:
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
  if form == 'adapter':
    save_adapters(target, policy, params)
  elif form == 'model':
    save_pretrained(target, policy, params)
  elif isinstance(policy, PretrainedPolicy):
    save_copy(pathlib.Path(target), policy.files, params)
  else:
    raise ValueError(
      'an Orbax copy must be of a pretrained model, got a policy that was'
      ' made here'
    )


def with_files(policy: Policy, pretrained: str) -> Policy:
  """A trained policy with the files of the model that it began as, if any."""
  if not pretrained:
    return policy
  files = small_files(base_of(pretrained))
  origin = origin_of(pretrained)
  return PretrainedPolicy(policy.config, files=files, origin=origin)
