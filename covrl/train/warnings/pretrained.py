# SPDX-License-Identifier: Apache-2.0
"""Warnings of recipes that take weights and not the rest of a pretrained model."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from covrl.data import Tokenizer
from covrl.data.tokenizers.tokenizer import find_different_token
from covrl.models import ModelConfig, Policy
from covrl.pretrained import base_model_directory, load_policy, load_tokenizer

# Fields of a model in which a recipe may differ from it.
_OF_THE_RUN = {'dtype', 'param_dtype', 'remat', 'lora'}


def pretrained_warnings(
  pretrained: str, policy: Policy, tokenizer: Tokenizer
) -> Iterator[str]:
  """Yields a sentence if model or tokenizer are not those of the weights.

  The tokenizer of a model that has none cannot be compared.

  Args:
    pretrained: the pretrained model; empty without one.
    policy: the policy that the recipe makes.
    tokenizer: the tokenizer of the recipe's task.
  """
  if not pretrained:
    return
  model, original = policy.config, _config_of(pretrained)
  if different_fields := [
    field.name
    for field in dataclasses.fields(model)
    if field.name not in _OF_THE_RUN
    and getattr(model, field.name) != getattr(original, field.name)
  ]:
    yield (
      f"the recipe's model has another {', '.join(different_fields)} than"
      f' {pretrained}, whose weights it takes'
    )
  with contextlib.suppress(ValueError):
    if different := find_different_token(tokenizer, load_tokenizer(pretrained)):
      token, text, original_text = different
      yield (
        f"token {token} is {text!r} in the tokenizer of the recipe's task and"
        f' {original_text!r} in that of {pretrained}, whose weights the model takes'
      )


def _config_of(pretrained: str) -> ModelConfig:
  """Returns the configuration of a pretrained model without adapters."""
  return load_policy(base_model_directory(pretrained)).config
