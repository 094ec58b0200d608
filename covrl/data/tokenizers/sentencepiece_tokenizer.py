# SPDX-License-Identifier: Apache-2.0
"""Tokenizers from sentencepiece models, and training of such models."""

from __future__ import annotations

import copy
import hashlib
import io
import pathlib
import re
from collections.abc import Iterable, Sequence

from covrl.data.problems import abbreviate


class SentencePieceTokenizer:
  """A tokenizer from a sentencepiece model.

  Control tokens in a text, such as `</s>` between the turns of a conversation,
  are encoded as such.

  Args:
    model: the serialised model.
    end_ids: tokens that end a response, by id or piece; the model's
      end-of-sequence token unless given.
    adds_bos: whether prompts begin with the model's BOS token, if it has one.

  Raises:
    ValueError: the bytes are not a sentencepiece model, the model has no
      end-of-sequence token, or an end id is out of range.
  """

  def __init__(
    self,
    model: bytes,
    end_ids: Sequence[str | int] = (),
    *,
    adds_bos: bool = True,
  ) -> None:
    import sentencepiece

    self._model = model
    try:
      self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
      raise ValueError(
        f'model must be a sentencepiece model, got {len(model)} other bytes'
      ) from error
    if self._processor.eos_id() < 0:
      raise ValueError(
        'a sentencepiece model must have an end-of-sequence token, got one'
        ' without it'
      )
    ids = tuple(dict.fromkeys(map(self._id, end_ids)))
    self._end_ids = ids or (self._processor.eos_id(),)
    self._bos_id = _id_or_none(self._processor.bos_id()) if adds_bos else None
    self._control_ids = {
      self._processor.id_to_piece(token): token
      for token in range(self.vocab_size)
      if self._processor.is_control(token)
    }
    longest_first = sorted(self._control_ids, key=len, reverse=True)
    self._control = re.compile(
      f'({"|".join(map(re.escape, longest_first)) or "(?!)"})'
    )

  @classmethod
  def load(cls, path: str | pathlib.Path) -> SentencePieceTokenizer:
    """Reads a model from a file."""
    return cls(pathlib.Path(path).read_bytes())

  @property
  def vocab_size(self) -> int:
    """Number of ids, which are 0 to `vocab_size - 1`."""
    return self._processor.vocab_size()

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
    """Id of the padding token, or of the end-of-sequence token without one."""
    pad_id = _id_or_none(self._processor.pad_id())
    return self._processor.eos_id() if pad_id is None else pad_id

  @property
  def special_tokens(self) -> tuple[str, ...]:
    """Texts that are encoded as one special token each."""
    return tuple(self._control_ids)

  @property
  def fingerprint(self) -> str:
    """SHA-256 of the model, in hexadecimal."""
    return hashlib.sha256(self._model).hexdigest()

  def encode(self, text: str) -> list[int]:
    """Ids of a text, without adding special tokens.

    Raises:
      ValueError: the text has words outside the vocabulary.
    """
    ids: list[int] = []
    for part in self._control.split(text):
      token = self._control_ids.get(part)
      ids += self._processor.encode(part) if token is None else (token,)
    if self._processor.unk_id() in ids:
      raise ValueError(
        "a text must be of the tokenizer's vocabulary, got"
        f' {abbreviate(text)}, which has other words'
      )
    return ids

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids; special tokens are dropped."""
    return str(self._processor.decode([int(piece) for piece in ids]))

  def to_bytes(self) -> bytes:
    """The serialised model."""
    return self._model

  def with_first_end(self, token: int) -> SentencePieceTokenizer:
    """The tokenizer with one of its end tokens as the first."""
    other = copy.copy(self)
    other._end_ids = tuple(dict.fromkeys((token, *self._end_ids)))
    return other

  def _id(self, token: str | int) -> int:
    """Id of a token, which may be given as its piece."""
    if isinstance(token, str):
      token_id = self._processor.piece_to_id(token)
      if token_id == self._processor.unk_id():
        raise ValueError(
          f'a sentencepiece model must have the token {token!r}, got one'
          ' without it'
        )
      return token_id
    if not 0 <= token < self.vocab_size:
      raise ValueError(
        f'end_ids must lie in [0, {self.vocab_size}), got {token}'
      )
    return token


def train_sentencepiece(
  texts: Iterable[str],
  *,
  vocab_size: int | None = None,
  model_type: str = 'word',
) -> SentencePieceTokenizer:
  """Trains a sentencepiece model, deterministically.

  Ids 0 to 3 are padding, begin, end and unknown.

  Args:
    texts: training texts.
    vocab_size: number of pieces, including special ones; all words of the texts
      unless given (word models only).
    model_type: sentencepiece's `word`, `unigram`, `bpe` or `char`.

  Returns:
    The tokenizer.

  Raises:
    ValueError: the texts are empty, or `vocab_size` is missing and the model
      is not a word model.
  """
  import sentencepiece

  texts = list(texts)
  words = {word for text in texts for word in text.split()}
  if not words:
    raise ValueError('texts to train a tokenizer on must have words, got none')
  if vocab_size is None:
    if model_type != 'word':
      raise ValueError(
        f'vocab_size must be given with model_type {model_type!r}, got None; only'
        " 'word' has a default"
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


def _id_or_none(piece: int) -> int | None:
  """The id; `None` for the negative id of an absent token."""
  return None if piece < 0 else piece
