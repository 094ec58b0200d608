# SPDX-License-Identifier: Apache-2.0
"""Interface of tokenizers.

A tokenizer is an immutable value: it is loaded from bytes, returns the same
bytes for checkpoints, and is identified by their digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from covrl.array_checks import check_integer


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
    """Ids of a text, without adding special tokens.

    Raises:
      ValueError: a part of the text has no token.
    """
    ...

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids; special tokens are dropped."""
    ...

  def to_bytes(self) -> bytes:
    """Content of the tokenizer's file."""
    ...


def check_tokenizer(tokenizer: Tokenizer, vocab_size: int) -> None:
  """Checks that tokenizer and policy have the same vocabulary.

  Args:
    tokenizer: the tokenizer of the data.
    vocab_size: vocabulary size of the policy.

  Raises:
    ValueError: the sizes differ, no token ends a response, or a special token is
      not in the vocabulary.
  """
  if tokenizer.vocab_size != vocab_size:
    raise ValueError(
      f"the tokenizer must have the policy's {vocab_size} tokens, got one"
      f' of {tokenizer.vocab_size} (SHA-256 {tokenizer.fingerprint[:12]}…)'
    )
  end_ids: object = tokenizer.end_ids
  if not isinstance(end_ids, list | tuple) or not end_ids:
    raise ValueError(
      'end_ids of a tokenizer must be a tuple of at least one id, without which no'
      f' response ends, got {end_ids!r}'
    )
  special_ids = [tokenizer.pad_id, *tokenizer.end_ids]
  if tokenizer.bos_id is not None:
    special_ids.append(tokenizer.bos_id)
  check_token_ids(special_ids, tokenizer, 'special tokens')


def find_different_token(
  tokenizer: Tokenizer, other: Tokenizer
) -> tuple[int, str, str] | None:
  """Finds a token that two tokenizers read as different texts.

  Tokens of which one has no text, such as special and unused ones, may differ.

  Returns:
    The id, its text, and its text in `other`; `None` without such a token.
  """
  if tokenizer.fingerprint == other.fingerprint:
    return None
  for token in range(min(tokenizer.vocab_size, other.vocab_size)):
    text, other_text = tokenizer.decode([token]), other.decode([token])
    if text and other_text and text != other_text:
      return token, text, other_text
  return None


def check_token_ids(
  ids: Sequence[int], tokenizer: Tokenizer, name: str
) -> None:
  """Refuses ids outside the vocabulary, for which a model has no embedding.

  Args:
    ids: ids from a tokenizer.
    tokenizer: the tokenizer.
    name: description of the ids, for the error.

  Raises:
    TypeError: the ids are not a list of integers.
    ValueError: an id is not in the vocabulary.
  """
  if not isinstance(ids, list | tuple):
    raise TypeError(
      f'{name} must have a list of token ids, got a {type(ids).__name__}'
    )
  for token in ids:
    check_integer(f'token ids of {name}', token)
  size = tokenizer.vocab_size
  if ids and not 0 <= min(ids) <= max(ids) < size:
    invalid = next(token for token in ids if not 0 <= token < size)
    raise ValueError(
      f'{name} must have token ids in [0, {size}), the vocabulary, got {invalid}'
    )
