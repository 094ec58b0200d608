# SPDX-License-Identifier: Apache-2.0
"""Rebuilds a sentencepiece model from the metadata of a GGUF file.

A sentencepiece model is a protocol buffer; this module encodes the few types of
fields that it has.

References:
  https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

from __future__ import annotations

import struct

from covrl.pretrained.gguf.metadata import Metadata

_KEY_PREFIX = 'tokenizer.ggml'
# Type of a token that is a byte, the last of the types 1 to 6.
_BYTE_TYPE = 6
# Field numbers of `ModelProto`; numbers below are those of its messages' fields.
_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
# `ModelType.BPE`.
_BPE = 2


def sentencepiece_model(
  metadata: Metadata, tokens: list[str], types: list[int]
) -> bytes:
  """A sentencepiece model with the tokens, scores and types of a file.

  Args:
    metadata: the file's metadata.
    tokens: the tokens.
    types: the type of each token, numbered as in sentencepiece.

  Raises:
    ValueError: the tokens are not those of a sentencepiece model.
  """
  import sentencepiece

  scores = metadata.numbers(f'{_KEY_PREFIX}.scores')
  if len(scores) != len(tokens):
    raise metadata.error(f'{_KEY_PREFIX}.scores', f'{len(tokens)} numbers')
  if not all(1 <= kind <= _BYTE_TYPE for kind in types):
    raise metadata.error(
      f'{_KEY_PREFIX}.token_type', f'numbers of 1 to {_BYTE_TYPE}'
    )
  pieces = [
    _encode_message(
      _PIECE,
      _encode_text(1, token)
      + _encode_float(2, score)
      + _encode_integer(3, kind),
    )
    for token, score, kind in zip(tokens, scores, types, strict=True)
  ]
  model = b''.join(
    (
      *pieces,
      _encode_message(
        _TRAINER, _encode_trainer_spec(metadata, tokens, _BYTE_TYPE in types)
      ),
      _encode_message(_NORMALIZER, _encode_normalizer_spec(metadata)),
    )
  )
  try:
    sentencepiece.SentencePieceProcessor(model_proto=model)
  except (RuntimeError, ValueError) as error:
    reason = ' '.join(str(error).split())[:120]
    raise metadata.error(
      f'{_KEY_PREFIX}.tokens', f'those of a sentencepiece model ({reason})'
    ) from None
  return model


def _encode_trainer_spec(
  metadata: Metadata, tokens: list[str], has_bytes: bool
) -> bytes:
  """Encodes the `TrainerSpec`: type of the model, and its special tokens."""
  fields = _encode_integer(3, _BPE) + _encode_integer(4, len(tokens))
  fields += _encode_integer(35, int(has_bytes))
  field_numbers = {'unknown': (40, 45), 'bos': (41, 46), 'eos': (42, 47)}
  for name, (id_field, piece_field) in field_numbers.items():
    field = f'{_KEY_PREFIX}.{name}_token_id'
    token_id = metadata.integer(field, 0 if name == 'unknown' else None)
    if token_id is not None:
      if token_id >= len(tokens):
        raise metadata.error(
          field, f'below {len(tokens)}, the number of tokens'
        )
      fields += _encode_integer(id_field, token_id) + _encode_text(
        piece_field, tokens[token_id]
      )
  return fields


def _encode_normalizer_spec(metadata: Metadata) -> bytes:
  """Encodes the `NormalizerSpec`: treatment of blanks; texts stay as they are."""
  adds_blank = metadata.flag(f'{_KEY_PREFIX}.add_space_prefix', True)
  removes_extra_blanks = metadata.flag(
    f'{_KEY_PREFIX}.remove_extra_whitespaces', False
  )
  return (
    _encode_text(1, 'identity')
    + _encode_integer(3, int(adds_blank))
    + _encode_integer(4, int(removes_extra_blanks))
    + _encode_integer(5, 1)
  )


def _encode_integer(field: int, value: int) -> bytes:
  """Encodes a field that is an integer of at least 0."""
  return _encode_varint(field << 3) + _encode_varint(value)


def _encode_float(field: int, value: float) -> bytes:
  """Encodes a field that is a float32."""
  return _encode_varint(field << 3 | 5) + struct.pack('<f', value)


def _encode_text(field: int, value: str) -> bytes:
  """Encodes a field that is a string."""
  return _encode_message(field, value.encode())


def _encode_message(field: int, content: bytes) -> bytes:
  """Encodes a field that is an encoded message, or other bytes."""
  return _encode_varint(field << 3 | 2) + _encode_varint(len(content)) + content


def _encode_varint(value: int) -> bytes:
  """An integer in groups of seven bits, lowest first.

  >>> _encode_varint(300).hex()
  'ac02'
  """
  groups = bytearray()
  while value > 127:
    groups.append(value & 127 | 128)
    value >>= 7
  return bytes((*groups, value))
