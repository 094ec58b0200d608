# SPDX-License-Identifier: Apache-2.0
"""Tokenizers from sentencepiece models, and training of such models."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import pathlib
import re
from collections.abc import Iterable, Sequence

from covrl.data.problems import abbreviate, check_unicode

# Appended to a serialised model, it sets `normalizer_spec.add_dummy_prefix` to
# false: protocol buffers merge the occurrences of a message.
_WITHOUT_PREFIX = b'\x1a\x02\x18\x00'

_TEXT = re.compile(r'\S')

# Smallest fraction of a model's embedding that pieces and added tokens use.
_MIN_USED_FRACTION = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class AddedToken:
  """A token that is not a piece of the sentencepiece model, or a renamed piece.

  Attributes:
    id: id of the token.
    text: text that is encoded as the token.
    special: whether decoding drops the token.
    strips_left: whether whitespace before the text is part of the token.
    strips_right: whether whitespace after the text is part of the token.
  """

  id: int
  text: str
  special: bool = True
  strips_left: bool = False
  strips_right: bool = False


class SentencePieceTokenizer:
  """A tokenizer from a sentencepiece model.

  Control tokens in a text, such as `</s>` between the turns of a conversation,
  are encoded as such, and so are added tokens.

  Args:
    model: the serialised model.
    end_ids: tokens that end a response, by id or piece; the model's
      end-of-sequence token unless given.
    adds_bos: whether prompts begin with the model's BOS token, if it has one.
    added_tokens: further tokens, and other texts of pieces.
    special_tokens: texts of special tokens in the model's other files; pieces with
      these texts are special even if the model does not mark them.
    vocab_size: vocabulary size of the model, whose embedding may be padded behind
      added tokens; ids beyond them have no text. Unless given, as many as there are
      pieces and added tokens.
    spaces_parts: whether text after a control token or an added token begins with a
      space if the model adds one to the beginning of a text.

  Raises:
    ValueError: the bytes are not a sentencepiece model, the model has no
      end-of-sequence token, an end id is out of range, two added tokens or a piece
      have the same text or id, or `vocab_size` is another one.
  """

  def __init__(
    self,
    model: bytes,
    end_ids: Sequence[str | int] = (),
    *,
    adds_bos: bool = True,
    added_tokens: Sequence[AddedToken] = (),
    special_tokens: Iterable[str] = (),
    vocab_size: int | None = None,
    spaces_parts: bool = True,
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
    self._part_processor = self._processor
    if not spaces_parts:
      self._part_processor = sentencepiece.SentencePieceProcessor(
        model_proto=model + _WITHOUT_PREFIX
      )
    self._added = self._added_by_id(added_tokens, set(special_tokens))
    self._vocab_size = self._check_size(vocab_size)
    self._tokens = {
      piece: AddedToken(id=token, text=piece)
      for token in range(self._processor.vocab_size())
      if self._processor.is_control(token)
      for piece in (self._processor.id_to_piece(token),)
    } | {token.text: token for token in self._added.values()}
    longest_first = sorted(self._tokens, key=len, reverse=True)
    self._token_text = re.compile(
      '|'.join(map(re.escape, longest_first)) or '(?!)'
    )
    ids = tuple(dict.fromkeys(map(self._id, end_ids)))
    self._end_ids = ids or (self._processor.eos_id(),)
    self._bos_id = _id_or_none(self._processor.bos_id()) if adds_bos else None

  @classmethod
  def load(cls, path: str | pathlib.Path) -> SentencePieceTokenizer:
    """Reads a model from a file."""
    return cls(pathlib.Path(path).read_bytes())

  @property
  def vocab_size(self) -> int:
    """Number of ids, which are 0 to `vocab_size - 1`."""
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
    """Id of the padding token, or of the end-of-sequence token without one."""
    pad_id = _id_or_none(self._processor.pad_id())
    return self._processor.eos_id() if pad_id is None else pad_id

  @property
  def special_tokens(self) -> tuple[str, ...]:
    """Texts that are encoded as one special token each."""
    return tuple(t.text for t in self._tokens.values() if t.special)

  @property
  def added_tokens(self) -> tuple[AddedToken, ...]:
    """Tokens beside the pieces, and pieces that are special or have another text."""
    return tuple(self._added.values())

  @property
  def spaces_parts(self) -> bool:
    """Whether text after a control token or an added token begins with a space."""
    return self._part_processor is self._processor

  @property
  def fingerprint(self) -> str:
    """SHA-256 of the model and what its other files add, in hexadecimal."""
    digest = hashlib.sha256(self._model)
    if self._added or not self.spaces_parts:
      added = sorted(self._added.items())
      digest.update(repr((added, self.spaces_parts)).encode())
    return digest.hexdigest()

  def encode(self, text: str) -> list[int]:
    """Ids of a text, without adding special tokens.

    Raises:
      ValueError: the text has words outside the vocabulary.
    """
    ids: list[int] = []
    end = 0
    for match in self._token_text.finditer(text):
      token = self._tokens[match[0]]
      part = text[end : match.start()]
      ids += self._encode_part(
        part.rstrip() if token.strips_left else part, end
      )
      ids.append(token.id)
      end = match.end()
      if token.strips_right:
        following = _TEXT.search(text, end)
        end = following.start() if following else len(text)
    ids += self._encode_part(text[end:], end)
    if -1 in ids:
      raise ValueError(
        "a text must be of the tokenizer's vocabulary, got"
        f' {abbreviate(text)}, which has other words'
      )
    return ids

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids; special tokens are dropped."""
    kept_ids = [token for token in map(int, ids) if not self._is_dropped(token)]
    if not any(token in self._added for token in kept_ids):
      return str(self._processor.decode(kept_ids))
    return str(
      self._processor.decode_pieces(
        [
          self._added[token].text
          if token in self._added
          else self._processor.id_to_piece(token)
          for token in kept_ids
        ]
      )
    )

  def to_bytes(self) -> bytes:
    """The serialised model."""
    return self._model

  def with_first_end(self, token: int) -> SentencePieceTokenizer:
    """The tokenizer with one of its end tokens as the first."""
    other = copy.copy(self)
    other._end_ids = tuple(dict.fromkeys((token, *self._end_ids)))
    return other

  def _encode_part(self, part: str, start: int) -> list[int]:
    """Ids of a part of a text between control tokens and added tokens.

    Args:
      part: the part.
      start: where it starts, 0 at the beginning of the text.

    Returns:
      The ids; -1 for words outside the vocabulary.
    """
    processor = self._part_processor if start else self._processor
    unknown = processor.unk_id()
    return [
      -1 if token == unknown else token for token in processor.encode(part)
    ]

  def _is_dropped(self, token: int) -> bool:
    """Whether an id has no text, or is that of a special token beside the pieces."""
    if token in self._added:
      return self._added[token].special
    return self._processor.vocab_size() <= token < self._vocab_size

  def _added_by_id(
    self, added_tokens: Sequence[AddedToken], special: set[str]
  ) -> dict[int, AddedToken]:
    """Added tokens and special pieces by id, without control tokens."""
    added: dict[int, AddedToken] = {}
    texts: set[str] = set()
    for token in added_tokens:
      piece_id = self._piece_id(token.text)
      if (
        not token.text
        or token.id in added
        or token.text in texts
        or piece_id not in (None, token.id)
      ):
        raise ValueError(
          'added tokens must have a text and an id of their own, got'
          f' {token.text!r:.80} with the id {token.id}'
        )
      texts.add(token.text)
      if piece_id is None or not self._processor.is_control(piece_id):
        added[token.id] = dataclasses.replace(
          token, special=token.special or token.text in special
        )
    for text in sorted(special - texts):
      piece_id = self._piece_id(text)
      if piece_id is not None and not self._processor.is_control(piece_id):
        added.setdefault(piece_id, AddedToken(id=piece_id, text=text))
    return added

  def _check_size(self, vocab_size: int | None) -> int:
    """Returns the vocabulary size if pieces and added tokens fit into it."""
    num_pieces = self._processor.vocab_size()
    size = max([num_pieces, *(token + 1 for token in self._added)])
    if vocab_size is None or vocab_size == size == num_pieces:
      return size
    # Models may lack embeddings of special tokens that are not used.
    beyond = [t for t in self._added.values() if t.id >= num_pieces]
    num_used = num_pieces + sum(token.id < vocab_size for token in beyond)
    if (
      vocab_size < num_pieces
      or any(t.id >= vocab_size and not t.special for t in beyond)
      or (not beyond and vocab_size > num_pieces)
      or num_used < _MIN_USED_FRACTION * vocab_size
    ):
      raise ValueError(
        f"a tokenizer must have the model's {vocab_size} tokens, got"
        f' {num_pieces + len(beyond)}'
      )
    return vocab_size

  def _piece_id(self, text: str) -> int | None:
    """Id of a piece; `None` if the model has no such piece."""
    check_unicode(text, 'a token')
    token = self._processor.piece_to_id(text)
    unknown = self._processor.unk_id()
    if token == unknown and self._processor.id_to_piece(unknown) != text:
      return None
    return token

  def _id(self, token: str | int) -> int:
    """Id of a token, which may be given by its text."""
    if isinstance(token, str) and token in self._tokens:
      return self._tokens[token].id
    if isinstance(token, str):
      token_id = self._piece_id(token)
      if token_id in (None, self._processor.unk_id()):
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
