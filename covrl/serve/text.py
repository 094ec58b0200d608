# SPDX-License-Identifier: Apache-2.0
"""Text of responses while they are sampled, and the strings that stop them."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from covrl.data import Tokenizer
from covrl.data.problems import check_unicode
from covrl.rollout import NewTokens

# The character that tokenizers decode incomplete or invalid UTF-8 to.
_INVALID = '\ufffd'
# Number of tokens with known text that are decoded again with later tokens, since
# the text of a token may depend on those before it.
_CONTEXT = 8
# Number of tokens that are tried to find an alphanumeric one, see `_plain_text`.
_MAX_PROBES = 1000


class IncrementalText:
  """Text of a growing sequence of tokens.

  The text only grows: characters of which some bytes are missing are held back.
  It equals the decoded sequence, however the tokens arrive, unless the sequence
  has bytes that are not UTF-8.

  Attributes:
    text: the text so far.
  """

  def __init__(self, tokenizer: Tokenizer) -> None:
    self.text = ''
    self._tokenizer = tokenizer
    # Recent tokens, the number of those whose text is known, and their text.
    self._ids: list[int] = []
    self._num_known, self._prefix = 0, ''

  def append(self, ids: Sequence[int]) -> None:
    """Appends tokens."""
    self._ids += ids
    decoded = self._tokenizer.decode(self._ids)
    if decoded.startswith(self._prefix) and not decoded.endswith(_INVALID):
      self.text += decoded[len(self._prefix) :]
      self._num_known, self._prefix = len(self._ids), decoded
      self._drop_old_tokens()

  def finish(self) -> None:
    """Adds the text that was held back."""
    decoded = self._tokenizer.decode(self._ids)
    if decoded.startswith(self._prefix):
      self.text += decoded[len(self._prefix) :]
    else:
      self.text += self._tokenizer.decode(self._ids[self._num_known :])
    self._num_known, self._prefix = len(self._ids), decoded

  def _drop_old_tokens(self) -> None:
    """Drops all but the last tokens if that does not change their text."""
    if len(self._ids) < 4 * _CONTEXT:
      return
    ids = self._ids[-_CONTEXT:]
    prefix = self._tokenizer.decode(ids)
    is_same = self._prefix.endswith(prefix) and prefix.strip()
    if is_same and _INVALID not in prefix:
      self._ids, self._num_known, self._prefix = ids, len(ids), prefix


class Delta(NamedTuple):
  """New part of a response.

  Attributes:
    text: new text; the end of the text may be held back while it may belong to
      a stop string.
    tokens: new tokens.
    policy_logprobs: log-probabilities of the tokens at temperature 1, in nats.
    sampling_logprobs: the same under the distribution that they were sampled
      from.
    offsets: length of the text before each token, in characters.
    finish_reason: `'stop'` after a stop string or an end token, `'length'` at
      the length limit; `None` if the response goes on.
  """

  text: str
  tokens: list[int]
  policy_logprobs: list[float]
  sampling_logprobs: list[float]
  offsets: list[int]
  finish_reason: Literal['stop', 'length'] | None


class NotFiniteError(RuntimeError):
  """A response whose logits are not finite, so that its tokens are arbitrary."""


class ResponseText:
  """Turns the tokens of a response into text, and finds stop strings in it.

  A response ends with the token that completes a stop string, exactly as if the
  text were searched after every token; tokens sampled beyond are dropped. The
  text ends before the stop string, and before a token that ends the response.
  """

  def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
    self._text = IncrementalText(tokenizer)
    self._stop = tuple(stop)
    self._emitted = self._searched = 0

  def append(self, new: NewTokens) -> Delta:
    """Adds tokens that were sampled.

    Nothing may be added once a delta has a finish reason.

    Raises:
      NotFiniteError: a log-probability is NaN.
    """
    if any(map(math.isnan, new.sampling_logprobs)):
      raise NotFiniteError('the logits of a response must be finite, got nan')
    offsets: list[int] = []
    for i, token in enumerate(new.tokens):
      offsets.append(len(self._text.text))
      is_last = i + 1 == len(new.tokens)
      reason = new.finish_reason if is_last else None
      if reason != 'stop':
        self._text.append([token])
      if reason is not None:
        self._text.finish()
      stop_start = self._find_stop()
      if stop_start is not None:
        return self._delta(new, i + 1, offsets, stop_start, 'stop')
    end = len(self._text.text)
    if new.finish_reason is None:
      end -= self._held_length()
    return self._delta(new, len(offsets), offsets, end, new.finish_reason)

  def _delta(
    self,
    new: NewTokens,
    count: int,
    offsets: list[int],
    end: int,
    reason: Literal['stop', 'length'] | None,
  ) -> Delta:
    """Returns the first `count` new tokens with the text up to `end`."""
    text = self._text.text[self._emitted : end]
    self._emitted = max(self._emitted, end)
    return Delta(
      text,
      new.tokens[:count],
      new.policy_logprobs[:count],
      new.sampling_logprobs[:count],
      offsets,
      reason,
    )

  def _find_stop(self) -> int | None:
    """Returns the index of the first stop string in the text, if there is any."""
    if not self._stop:
      return None
    text = self._text.text
    longest = max(map(len, self._stop))
    start = max(0, self._searched - longest + 1)
    self._searched = len(text)
    starts = [text.find(stop, start) for stop in self._stop]
    return min(
      (start_found for start_found in starts if start_found >= 0), default=None
    )

  def _held_length(self) -> int:
    """Returns the length of the text's end that may begin a stop string."""
    text = self._text.text
    return max(
      (
        length
        for stop in self._stop
        for length in range(1, len(stop))
        if text.endswith(stop[:length])
      ),
      default=0,
    )


def check_stop_string(tokenizer: Tokenizer, stop: str) -> None:
  """Checks that a stop string can occur in decoded text.

  Raises:
    ValueError: it is empty or not valid Unicode, or no tokens decode to it.
  """
  if not stop:
    raise ValueError("stop strings must not be empty, got ''")
  check_unicode(stop, 'a stop string')
  surrounding_texts = ('', *_plain_text(tokenizer))
  for before, after in itertools.product(surrounding_texts, surrounding_texts):
    try:
      ids = tokenizer.encode(before + stop + after)
    except ValueError:
      # Words outside the vocabulary.
      continue
    if stop in tokenizer.decode(ids):
      return
  raise ValueError(
    f'stop strings must be text that tokens decode to, got {stop!r}; special'
    ' tokens go into stop_token_ids'
  )


@functools.lru_cache(maxsize=4)
def _plain_text(tokenizer: Tokenizer) -> tuple[str, ...]:
  """Returns the text of one alphanumeric token, if there is any."""
  for token in range(min(tokenizer.vocab_size, _MAX_PROBES)):
    text = tokenizer.decode([token])
    if text.isalnum():
      return (text,)
  return ()
