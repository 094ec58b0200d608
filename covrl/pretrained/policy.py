# SPDX-License-Identifier: Apache-2.0
"""A `Policy` with the tokenizer and configuration files needed to export it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from covrl.models import Policy


@dataclasses.dataclass(frozen=True)
class PretrainedPolicy(Policy):
  """A policy with the files and the origin of its pretrained model.

  They are ignored in comparisons.

  Attributes:
    files: content of `config.json`, tokenizer and generation files, by name.
    origin: directory of the model, or its name on the Hugging Face hub; for an
      adapter, of its base model.
    adapter_files: content of the tokenizer and generation files that adapters need
      beside them, since those of their base model differ, by name.
  """

  files: Mapping[str, bytes] = dataclasses.field(
    default_factory=dict, compare=False, repr=False
  )
  origin: str = dataclasses.field(default='', compare=False, repr=False)
  adapter_files: Mapping[str, bytes] = dataclasses.field(
    default_factory=dict, compare=False, repr=False
  )
