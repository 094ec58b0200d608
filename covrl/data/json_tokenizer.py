# SPDX-License-Identifier: Apache-2.0
"""Tokenizers that are a `tokenizer.json`, as pretrained models come with."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Sequence

# The least part of a model's embedding that its own tokenizer uses: padding to
# a round number adds a few hundredths.
_FULL = 0.9


class JsonTokenizer:
  """A `tokenizer.json`, as pretrained models are published with.

  The file does not say which tokens begin and end a text; the model's
  configuration does, so they are given here, by text or by id.

  Args:
    file: the content of the file.
    end_tokens: any of them ends a response.
    bos_token: put before every prompt.
    pad_token: fills rows; the first end token unless given.
    vocab_size: of the model, whose embedding may be padded to a round number;
      ids beyond the file's tokens have no text. The file's own unless given.

  Raises:
    ValueError: the bytes are no tokenizer, lack one of the tokens, or have
      ordinary tokens beyond `vocab_size`.
  """

  def __init__(
    self,
    file: bytes,
    *,
    end_tokens: Sequence[str | int],
    bos_token: str | int | None = None,
    pad_token: str | int | None = None,
    vocab_size: int | None = None,
  ) -> None:
    import tokenizers

    self._file = file
    try:
      self._tokenizer = tokenizers.Tokenizer.from_str(file.decode())
    except Exception as error:  # The library raises plain `Exception`.
      raise ValueError(
        f'A tokenizer.json was required, got {len(file)} bytes that are none.'
      ) from error
    self._vocab_size = self._size_for(vocab_size)
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
    end_tokens: Sequence[str | int],
    bos_token: str | int | None = None,
    pad_token: str | int | None = None,
    vocab_size: int | None = None,
  ) -> JsonTokenizer:
    """Reads a tokenizer from a file."""
    return cls(
      pathlib.Path(path).read_bytes(),
      end_tokens=end_tokens,
      bos_token=bos_token,
      pad_token=pad_token,
      vocab_size=vocab_size,
    )

  @property
  def vocab_size(self) -> int:
    """Ids are 0 to `vocab_size - 1`, added tokens among them."""
    return self._vocab_size

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

  def _id(self, token: str | int) -> int:
    if isinstance(token, int):
      found = token if 0 <= token < self.vocab_size else None
    else:
      found = self._tokenizer.token_to_id(token)
    if found is None:
      raise ValueError(
        f'A tokenizer with the token {token!r} was required, got one of'
        f' {self.vocab_size} tokens without it.'
      )
    return found

  def _size_for(self, vocab_size: int | None) -> int:
    """The model's vocabulary, once the file's is known to lie in it."""
    own = self._tokenizer.get_vocab_size(with_added_tokens=True)
    if vocab_size is None:
      return own
    # A text model may lack the embeddings of tokens that stand for images.
    added = self._tokenizer.get_added_tokens_decoder()
    beyond = [
      token
      for token in range(vocab_size, own)
      if token not in added or not added[token].special
    ]
    if beyond or own < _FULL * vocab_size:
      raise ValueError(
        f"A tokenizer of the model's {vocab_size} tokens was required, of"
        f' which a few may be unused, got one of {own}.'
      )
    return vocab_size
