# SPDX-License-Identifier: Apache-2.0
"""Detection of text for which a `tokenizer.json` has no token.

Models of `tokenizer.json` leave such text out (BPE without an unknown token) or
write their unknown token in its place. What normalizers and pre-tokenizers change
or remove before is not text without a token.
"""

from __future__ import annotations

import json
from typing import Any

from covrl.data.problems import abbreviate

# An unknown token that no vocabulary has.
_UNKNOWN = '\U0010fffdunknown'
# Id of that token where it is added to a vocabulary, beyond all others.
_UNKNOWN_ID = 2**31 - 1

# Texts without a token, and characters of each, that an error names at most.
_MAX_NAMED = 5
_MAX_NAMED_LENGTH = 20


def refuse_unknown_text(tokenizer: Any) -> None:
  """Makes a tokenizer of the library raise an error at text without a token.

  Its unknown token becomes one that the vocabulary lacks, which the library looks
  up only for such text: encoding takes no more time. Unigram models, whose unknown
  token cannot be changed, need `unigram_unknown_id`.
  """
  import tokenizers

  if not isinstance(tokenizer.model, tokenizers.models.Unigram):
    tokenizer.model.unk_token = _UNKNOWN


def unigram_unknown_id(file: bytes, tokenizer: Any) -> int | None:
  """Id of the unknown token of a Unigram model, which a text may also name.

  Returns:
    `None` for other models, and for one without an unknown token, whose encoding
    raises an error.
  """
  import tokenizers

  if not isinstance(tokenizer.model, tokenizers.models.Unigram):
    return None
  return json.loads(file)['model'].get('unk_id')


def mark_unknown_text(file: bytes) -> bytes:
  """A tokenizer's file with another unknown token, which stands for nothing else.

  Added tokens may have other ids: it is for `check_known_text` only.
  """
  content = json.loads(file)
  model = content['model']
  vocabulary = model['vocab']
  if isinstance(vocabulary, list):
    # A Unigram model, whose least score determines that of unknown text.
    model['unk_id'] = len(vocabulary)
    score = min((score for _, score in vocabulary), default=0.0)
    vocabulary.append([_UNKNOWN, score])
  else:
    model['unk_token'] = _UNKNOWN
    vocabulary[_UNKNOWN] = _UNKNOWN_ID
  if 'fuse_unk' in model:
    model['fuse_unk'] = False
  return json.dumps(content).encode()


def check_known_text(text: str, marked_tokenizer: Any) -> None:
  """Checks that all characters or words of a text have a token.

  Args:
    text: the text.
    marked_tokenizer: the library's tokenizer of a file of `mark_unknown_text`.

  Raises:
    ValueError: some have none; the message names the first.
  """
  encoding = marked_tokenizer.encode(text, add_special_tokens=False)
  unknown_id = marked_tokenizer.token_to_id(_UNKNOWN)
  spans = [
    span
    for token, span in zip(encoding.ids, encoding.offsets, strict=True)
    if token == unknown_id
  ]
  if not spans:
    return
  unknown = dict.fromkeys(text[start:end] for start, end in spans)
  named = [abbreviate(part, _MAX_NAMED_LENGTH) for part in unknown]
  if len(named) > _MAX_NAMED:
    named[_MAX_NAMED:] = ['…']
  raise ValueError(
    "a text must be of the tokenizer's vocabulary, got"
    f' {abbreviate(text)} without a token for {", ".join(named)}'
  )
