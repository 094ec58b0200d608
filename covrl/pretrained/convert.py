# SPDX-License-Identifier: Apache-2.0
"""`covrl convert`: weights from one kind of directory to another."""

from __future__ import annotations

import pathlib

from jaxtyping import PyTree

from covrl.models import Policy
from covrl.pretrained.copies import save_copy
from covrl.pretrained.policy import PretrainedPolicy
from covrl.pretrained.resolve import resolve, small_files
from covrl.pretrained.writing import save_pretrained


def convert(
  policy: Policy, params: PyTree, target: str | pathlib.Path, *, orbax: bool
) -> None:
  """Writes a policy as a Hugging Face directory, or as an Orbax copy of one.

  Args:
    policy: an Orbax copy needs one that was loaded from a directory.
    params: its parameters.
    target: must not exist.
    orbax: whether the weights are written by Orbax.

  Raises:
    ValueError: as `save_pretrained`; a copy of nothing is asked for.
  """
  if not orbax:
    save_pretrained(target, policy, params)
    return
  if not isinstance(policy, PretrainedPolicy):
    raise ValueError(
      'an Orbax copy must be of a pretrained model, got a policy that was'
      ' made here'
    )
  save_copy(pathlib.Path(target).absolute(), policy.files, params)


def with_files(policy: Policy, pretrained: str) -> Policy:
  """A trained policy with the files of the model that it began as, if any."""
  if not pretrained:
    return policy
  return PretrainedPolicy(policy.config, files=small_files(resolve(pretrained)))
