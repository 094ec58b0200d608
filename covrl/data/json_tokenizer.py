# SPDX-License-Identifier: Apache-2.0
"""Tokenizers that are a `tokenizer.json`, as pretrained models come with."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Sequence


class JsonTokenizer:
  """A `tokenizer.json`, as pretrained models are published with.

  The file does not say which tokens begin and end a text; the model's
  configuration does, so they are given here.

  Args:
    file: the content of the file.
    end_tokens: any of them ends a response.
    bos_token: put before every prompt.
    pad_token: fills rows; the first end token unless given.

  Raises:
    ValueError: the bytes are no tokenizer, or lack one of the tokens.
  """

  def __init__(
    self,
    file: bytes,
    *,
    end_tokens: Sequence[str],
    bos_token: str | None = None,
    pad_token: str | None = None,
  ) -> None:
    import tokenizers

    self._file = file
    try:
      self._tokenizer = tokenizers.Tokenizer.from_str(file.decode())
    except Exception as error:  # The library raises plain `Exception`.
      raise ValueError(
        f'A tokenizer.json was required, got {len(file)} bytes that are none.'
      ) from error
    if not end_tokens:
      raise ValueError('At least one end token is required, got none.')
    self._end_ids = tuple(map(self._id, end_tokens))
    self._bos_id = None if bos_token is None else self._id(bos_token)
    self._pad_id = (
      self._end_ids[0] if pad_token is None else self._id(pad_token)
    )

  @classmethod
  def load(
    cls,
    path: str | pathlib.Path,
    *,
    end_tokens: Sequence[str],
    bos_token: str | None = None,
    pad_token: str | None = None,
  ) -> JsonTokenizer:
    """Reads a tokenizer from a file."""
    return cls(
      pathlib.Path(path).read_bytes(),
      end_tokens=end_tokens,
      bos_token=bos_token,
      pad_token=pad_token,
    )

  @property
  def vocab_size(self) -> int:
    """Ids are 0 to `vocab_size - 1`, added tokens among them."""
    return self._tokenizer.get_vocab_size(with_added_tokens=True)

  @property
  def bos_id(self) -> int | None:
    """Put before every prompt; `None` where the model has none."""
    return self._bos_id

  @property
  def end_ids(self) -> tuple[int, ...]:
    """Any of them ends a response; the first is the one to train on."""
    return self._end_ids

  @property
  def pad_id(self) -> int:
    """Fills rows."""
    return self._pad_id

  @property
  def fingerprint(self) -> str:
    """SHA-256 of the file, in hexadecimal."""
    return hashlib.sha256(self._file).hexdigest()

  def encode(self, text: str) -> list[int]:
    """The ids of a text, without any special tokens."""
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Sequence[int]) -> str:
    """The text of some ids; special tokens leave no trace."""
    return self._tokenizer.decode([int(piece) for piece in ids])

  def to_bytes(self) -> bytes:
    """The file."""
    return self._file

  def _id(self, token: str) -> int:
    found = self._tokenizer.token_to_id(token)
    if found is None:
      raise ValueError(
        f'A tokenizer with the token {token!r} was required, got one of'
        f' {self.vocab_size} tokens without it.'
      )
    return found
