# SPDX-License-Identifier: Apache-2.0
"""Text to token ids and back: the interface that all tokenizers share.

A tokenizer is a value: it is loaded from bytes, gives back the same bytes
(a checkpoint keeps them), and is told apart by their digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class Tokenizer(Protocol):
  """What the rest of covrl asks of a tokenizer."""

  @property
  def vocab_size(self) -> int:
    """Ids are 0 to `vocab_size - 1`."""
    ...

  @property
  def bos_id(self) -> int | None:
    """Put before every prompt; `None` where the model has none."""
    ...

  @property
  def end_ids(self) -> tuple[int, ...]:
    """Any of them ends a response; the first is the one to train on."""
    ...

  @property
  def pad_id(self) -> int:
    """Fills rows; masks, never this id, tell what is padding."""
    ...

  @property
  def fingerprint(self) -> str:
    """SHA-256 of the tokenizer's file, in hexadecimal."""
    ...

  def encode(self, text: str) -> list[int]:
    """The ids of a text, without any special tokens."""
    ...

  def decode(self, ids: Sequence[int]) -> str:
    """The text of some ids; special tokens leave no trace."""
    ...

  def to_bytes(self) -> bytes:
    """The tokenizer's file."""
    ...


def check_tokenizer(tokenizer: Tokenizer, vocab_size: int) -> None:
  """Refuses a tokenizer whose ids are not the policy's.

  Args:
    tokenizer: of the data.
    vocab_size: of the policy.

  Raises:
    ValueError: the sizes differ.
  """
  if tokenizer.vocab_size != vocab_size:
    raise ValueError(
      f"The tokenizer must have the policy's {vocab_size} tokens, got one"
      f' of {tokenizer.vocab_size} (SHA-256 {tokenizer.fingerprint[:12]}…).'
    )
