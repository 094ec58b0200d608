# SPDX-License-Identifier: Apache-2.0
"""Tokenizers from the `tokenizer.json` of Hugging Face models."""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from covrl.data.tokenizers.unknown_text import (
  check_known_text,
  mark_unknown_text,
  refuse_unknown_text,
  unigram_unknown_id,
)

# Smallest fraction of a model's embedding that its own tokenizer uses; padding
# the embedding to a round number adds a few per cent.
_MIN_USED_FRACTION = 0.9

# Tokens of the vocabulary that are encoded as texts, at most, to find the tokens
# that the post-processor puts before a text.
_MAX_PROBES = 100


class JsonTokenizer:
  """A tokenizer from a `tokenizer.json`.

  The file does not define the tokens that end a response; they are in the
  model's other files, and are passed here by text or id. Encoding is complete
  and deterministic: the file's settings of truncation, padding and BPE dropout
  are for training and batching, and are not applied.

  Args:
    file: content of the file.
    end_tokens: tokens that end a response.
    bos_token: first token of every prompt; the one that the file's
      post-processor puts before a text, if any, unless given.
    pad_token: token that fills rows; the first end token unless given.
    special_tokens: texts of special tokens in the model's other files; those of
      the vocabulary are special even if the file does not mark them.
    vocab_size: vocabulary size of the model, whose embedding may be padded; ids
      beyond the file's tokens have no text. The file's size unless given.

  Raises:
    ValueError: the file is not a tokenizer, lacks one of the tokens, puts
      several tokens before a text, or has ordinary tokens beyond `vocab_size` or
      added ones whose ids do not continue the vocabulary's.
  """

  def __init__(
    self,
    file: bytes,
    *,
    end_tokens: Sequence[str | int],
    bos_token: str | int | None = None,
    pad_token: str | int | None = None,
    vocab_size: int | None = None,
    special_tokens: Iterable[str] = (),
  ) -> None:
    self._file = file
    self._special_tokens = tuple(special_tokens)
    self._tokenizer = _parse(file)
    _check_added_ids(file, self._tokenizer)
    _add_special(self._tokenizer, self._special_tokens)
    refuse_unknown_text(self._tokenizer)
    self._unigram_unknown_id = unigram_unknown_id(file, self._tokenizer)
    self._vocab_size = self._check_size(vocab_size)
    if not end_tokens:
      raise ValueError('end_tokens must name at least one token, got none')
    self._end_ids = tuple(dict.fromkeys(map(self._id, end_tokens)))
    bos = self._post_processor_bos_id() if bos_token is None else bos_token
    self._bos_id = None if bos is None else self._id(bos)
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
    """Number of ids, including added tokens."""
    return self._vocab_size

  @property
  def bos_id(self) -> int | None:
    """Id of the BOS token, the first of every prompt, or `None`."""
    return self._bos_id

  @property
  def end_ids(self) -> tuple[int, ...]:
    """Ids that end a response; supervised training uses the first."""
    return self._end_ids

  @property
  def pad_id(self) -> int:
    """Id that fills rows."""
    return self._pad_id

  @property
  def special_tokens(self) -> tuple[str, ...]:
    """Texts that are encoded as one special token each."""
    added = self._tokenizer.get_added_tokens_decoder().values()
    return tuple(token.content for token in added if token.special)

  @property
  def fingerprint(self) -> str:
    """SHA-256 of the file, in hexadecimal."""
    return hashlib.sha256(self._file).hexdigest()

  def encode(self, text: str) -> list[int]:
    """Ids of a text, without adding special tokens.

    Raises:
      ValueError: the text has characters or words outside the vocabulary.
    """
    try:
      ids = self._tokenizer.encode(text, add_special_tokens=False).ids
    except Exception as error:
      # The library raises plain `Exception`.
      if type(error) is not Exception:
        raise
      self._check_known(text)
      raise ValueError(f'a text cannot be tokenized: {error}') from error
    if self._unigram_unknown_id is not None and self._unigram_unknown_id in ids:
      self._check_known(text)
    return ids

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids; special tokens are dropped."""
    return self._tokenizer.decode([int(piece) for piece in ids])

  def to_bytes(self) -> bytes:
    """Content of the file."""
    return self._file

  def with_first_end(self, token: int) -> JsonTokenizer:
    """The tokenizer with one of its end tokens as the first."""
    other = copy.copy(self)
    other._end_ids = tuple(dict.fromkeys((token, *self._end_ids)))
    return other

  def _id(self, token: str | int) -> int:
    """Id of a token, which may be given by its text."""
    if isinstance(token, int):
      token_id = token if 0 <= token < self.vocab_size else None
    else:
      token_id = self._tokenizer.token_to_id(token)
    if token_id is None:
      raise ValueError(
        f'a tokenizer must have the token {token!r}, got one of'
        f' {self.vocab_size} tokens without it'
      )
    return token_id

  def _check_known(self, text: str) -> None:
    """Refuses a text of which characters or words have no token."""
    check_known_text(text, self._marked_tokenizer)

  @functools.cached_property
  def _marked_tokenizer(self) -> Any:
    """The library's tokenizer that marks text without a token."""
    tokenizer = _parse(mark_unknown_text(self._file))
    _add_special(tokenizer, self._special_tokens)
    return tokenizer

  def _post_processor_bos_id(self) -> int | None:
    """The token that the post-processor puts before a text, if any."""
    vocabulary = itertools.islice(self._tokenizer.get_vocab(), _MAX_PROBES)
    for text in ('a', *vocabulary):
      try:
        encoding = self._tokenizer.encode(text, add_special_tokens=True)
      except Exception:
        # The vocabulary has no token for this text.
        continue
      is_added = encoding.special_tokens_mask
      if 0 not in is_added:
        # Nothing is left of this text.
        continue
      prefix_ids = encoding.ids[: is_added.index(0)]
      if len(prefix_ids) > 1:
        raise ValueError(
          'a tokenizer must put at most one token before a text,'
          f' got one that puts {prefix_ids}'
        )
      return prefix_ids[0] if prefix_ids else None
    return None

  def _check_size(self, vocab_size: int | None) -> int:
    """Returns the model's vocabulary size if the file's tokens fit into it."""
    ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
    # Ids need not be consecutive.
    size = max(ids, default=-1) + 1
    if vocab_size is None:
      return size
    # Text models may lack embeddings of special tokens that mark images.
    added = self._tokenizer.get_added_tokens_decoder()
    excess_ids = [
      token
      for token in ids
      if token >= vocab_size
      and (token not in added or not added[token].special)
    ]
    if excess_ids or len(ids) < _MIN_USED_FRACTION * vocab_size:
      raise ValueError(
        f"a tokenizer must have the model's {vocab_size} tokens, a few of"
        f' them unused, got {len(ids)} with ids up to {size - 1}'
      )
    return vocab_size


def _parse(file: bytes) -> Any:
  """The library's tokenizer of a file, without truncation, padding and dropout."""
  import tokenizers

  try:
    tokenizer = tokenizers.Tokenizer.from_str(file.decode())
  except BaseException as error:
    # The library raises plain `Exception`, and panics that are not an `Exception`.
    if isinstance(error, KeyboardInterrupt | SystemExit):
      raise
    raise ValueError(
      f'file must be a tokenizer.json, got {len(file)} other bytes'
    ) from error
  tokenizer.no_truncation()
  tokenizer.no_padding()
  if isinstance(tokenizer.model, tokenizers.models.BPE):
    tokenizer.model.dropout = None
  return tokenizer


def _add_special(tokenizer: Any, texts: Iterable[str]) -> None:
  """Makes tokens of the vocabulary special, as transformers does."""
  added = tokenizer.get_added_tokens_decoder().values()
  added_texts = {token.content for token in added}
  tokenizer.add_special_tokens(
    [
      text
      for text in texts
      if text not in added_texts and tokenizer.token_to_id(text) is not None
    ]
  )


def _check_added_ids(file: bytes, tokenizer: Any) -> None:
  """Refuses added tokens that the library renumbers without an error."""
  for token in json.loads(file).get('added_tokens') or ():
    actual = tokenizer.token_to_id(token['content'])
    if actual != token['id']:
      raise ValueError(
        'added_tokens must continue the ids of the vocabulary, got'
        f' {token["content"]!r:.80} with {token["id"]} in place of {actual}'
      )
