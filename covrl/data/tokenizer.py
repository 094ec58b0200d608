# SPDX-License-Identifier: Apache-2.0
"""Interface of tokenizers.

A tokenizer is an immutable value: it is loaded from bytes, returns the same
bytes for checkpoints, and is identified by their digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class Tokenizer(Protocol):
  """Converts text to token ids and back."""

  @property
  def vocab_size(self) -> int:
    """Number of ids, which are 0 to `vocab_size - 1`."""
    ...

  @property
  def bos_id(self) -> int | None:
    """Id of the BOS token, the first of every prompt, or `None`.

    A prompt that was formatted with one does not get another, see
    `covrl.data.prompt_ids`.
    """
    ...

  @property
  def end_ids(self) -> tuple[int, ...]:
    """Ids that end a response; supervised training uses the first."""
    ...

  @property
  def pad_id(self) -> int:
    """Id that fills rows; padding is marked by masks, never by this id."""
    ...

  @property
  def fingerprint(self) -> str:
    """SHA-256 of the tokenizer's file, in hexadecimal."""
    ...

  def encode(self, text: str) -> list[int]:
    """Ids of a text, without adding special tokens."""
    ...

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids; special tokens are dropped."""
    ...

  def to_bytes(self) -> bytes:
    """Content of the tokenizer's file."""
    ...


def check_tokenizer(tokenizer: Tokenizer, vocab_size: int) -> None:
  """Checks that tokenizer and policy have the same vocabulary size.

  Args:
    tokenizer: the tokenizer of the data.
    vocab_size: vocabulary size of the policy.

  Raises:
    ValueError: the sizes differ.
  """
  if tokenizer.vocab_size != vocab_size:
    raise ValueError(
      f"the tokenizer must have the policy's {vocab_size} tokens, got one"
      f' of {tokenizer.vocab_size} (SHA-256 {tokenizer.fingerprint[:12]}…)'
    )
