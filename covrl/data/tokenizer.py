# SPDX-License-Identifier: Apache-2.0
"""Text to token ids and back: one small interface, two kinds of files.

A tokenizer is a value: it is loaded from bytes, gives back the same bytes
(a checkpoint keeps them), and is told apart by their digest.
"""

from __future__ import annotations

import functools
import hashlib
import io
import pathlib
from collections.abc import Iterable, Sequence
from typing import Protocol

from covrl.data.countdown import CountdownConfig, vocabulary


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


class SentencePieceTokenizer:
  """A sentencepiece model.

  Args:
    model: the serialised model.

  Raises:
    ValueError: the bytes are no sentencepiece model, or one without an
      end-of-sequence token.
  """

  def __init__(self, model: bytes) -> None:
    import sentencepiece

    self._model = model
    try:
      self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
      raise ValueError(
        f'A sentencepiece model was required, got {len(model)} bytes that'
        ' are none.'
      ) from error
    if self._processor.eos_id() < 0:
      raise ValueError(
        'A tokenizer with an end-of-sequence token was required, got a'
        ' sentencepiece model that has none.'
      )

  @classmethod
  def load(cls, source: str | pathlib.Path | bytes) -> SentencePieceTokenizer:
    """Reads a model from a file, or from the bytes of one."""
    return cls(_read(source))

  @property
  def vocab_size(self) -> int:
    """Ids are 0 to `vocab_size - 1`."""
    return self._processor.vocab_size()

  @property
  def bos_id(self) -> int | None:
    """Put before every prompt; `None` where the model has none."""
    return _id_or_none(self._processor.bos_id())

  @property
  def end_ids(self) -> tuple[int, ...]:
    """The end-of-sequence token."""
    return (self._processor.eos_id(),)

  @property
  def pad_id(self) -> int:
    """The padding token, or the end-of-sequence token where there is none."""
    pad_id = _id_or_none(self._processor.pad_id())
    return self._processor.eos_id() if pad_id is None else pad_id

  @functools.cached_property
  def fingerprint(self) -> str:
    """SHA-256 of the model, in hexadecimal."""
    return hashlib.sha256(self._model).hexdigest()

  def encode(self, text: str) -> list[int]:
    """The ids of a text, without any special tokens.

    Raises:
      ValueError: part of the text is in no piece of the vocabulary.
    """
    ids = [int(piece) for piece in self._processor.encode(text)]
    if self._processor.unk_id() in ids:
      raise ValueError(
        "A text of the tokenizer's vocabulary was required, got"
        f' {_abbreviate(text)}, which has other words.'
      )
    return ids

  def decode(self, ids: Sequence[int]) -> str:
    """The text of some ids; special tokens leave no trace."""
    return str(self._processor.decode([int(piece) for piece in ids]))

  def to_bytes(self) -> bytes:
    """The serialised model."""
    return self._model


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
    source: str | pathlib.Path | bytes,
    *,
    end_tokens: Sequence[str],
    bos_token: str | None = None,
    pad_token: str | None = None,
  ) -> JsonTokenizer:
    """Reads a tokenizer from a file, or from the bytes of one."""
    return cls(
      _read(source),
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

  @functools.cached_property
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


def train_sentencepiece(
  texts: Iterable[str],
  *,
  vocab_size: int | None = None,
  model_type: str = 'word',
) -> SentencePieceTokenizer:
  """Makes a sentencepiece model of some texts; the same texts, the same model.

  Ids 0 to 3 are padding, begin, end and unknown.

  Args:
    texts: what to learn the pieces from.
    vocab_size: how many pieces, special ones included; every word of the texts
      unless given (word models only).
    model_type: sentencepiece's `word`, `unigram`, `bpe` or `char`.

  Returns:
    The tokenizer.

  Raises:
    ValueError: there is no text, or another model type without a size.
  """
  import sentencepiece

  texts = list(texts)
  words = {word for text in texts for word in text.split()}
  if not words:
    raise ValueError('Texts to train a tokenizer on are required, got none.')
  if vocab_size is None:
    if model_type != 'word':
      raise ValueError(
        f'A {model_type} model needs a vocab_size; only a word model can'
        ' take every word there is.'
      )
    vocab_size = len(words) + 4
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(texts),
    model_writer=model,
    model_type=model_type,
    vocab_size=vocab_size,
    normalization_rule_name='identity',
    character_coverage=1.0,
    use_all_vocab=model_type == 'word',
    pad_id=0,
    bos_id=1,
    eos_id=2,
    unk_id=3,
    num_threads=1,
    minloglevel=2,
  )
  return SentencePieceTokenizer(model.getvalue())


def countdown_tokenizer(config: CountdownConfig) -> SentencePieceTokenizer:
  """One token for each number, operator and parenthesis of Countdown.

  >>> tokenizer = countdown_tokenizer(CountdownConfig())
  >>> tokenizer.vocab_size, len(tokenizer.encode('( 3 + 7 ) * 12 - 5'))
  (113, 9)
  """
  return train_sentencepiece(vocabulary(config))


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


def _read(source: str | pathlib.Path | bytes) -> bytes:
  return (
    source if isinstance(source, bytes) else pathlib.Path(source).read_bytes()
  )


def _id_or_none(piece: int) -> int | None:
  return None if piece < 0 else piece


def _abbreviate(text: str, length: int = 80) -> str:
  return repr(text if len(text) <= length else f'{text[:length]}…')
