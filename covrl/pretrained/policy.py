# SPDX-License-Identifier: Apache-2.0
"""A policy that came from somewhere, and can go back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from covrl.models import Policy


@dataclasses.dataclass(frozen=True)
class PretrainedPolicy(Policy):
  """A policy that remembers the small files it came with.

  Neither is part of its identity.

  Attributes:
    files: content of `config.json` and what a tokenizer and a sampler need, by
      name.
    origin: the model's directory, or its name on the Hugging Face hub; an
      adapter's is that of the model it stands beside.
  """

  files: Mapping[str, bytes] = dataclasses.field(
    default_factory=dict, compare=False, repr=False
  )
  origin: str = dataclasses.field(default='', compare=False, repr=False)
