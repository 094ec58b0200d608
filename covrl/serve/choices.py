# SPDX-License-Identifier: Apache-2.0
"""One choice of a completion, collected from its parts, in OpenAI's form."""

from __future__ import annotations

from typing import Any

from covrl.data import Tokenizer
from covrl.serve.text import Delta


class Choice:
  """A response, collected from its parts.

  Attributes:
    index: index of the choice.
    tokens: sampled tokens.
    text: the text.
    finish_reason: see `Delta`.
  """

  def __init__(self, index: int, tokenizer: Tokenizer) -> None:
    self.index, self.tokens, self.text = index, list[int](), ''
    self.finish_reason: str | None = None
    self._tokenizer = tokenizer
    self._deltas: list[Delta] = []

  def add(self, delta: Delta) -> None:
    """Adds the next part of the response."""
    self.tokens += delta.tokens
    self.text += delta.text
    self.finish_reason = delta.finish_reason
    self._deltas.append(delta._replace(text='', tokens=[]))

  @property
  def policy_logprobs(self) -> list[float]:
    """Log-probabilities of the tokens at temperature 1, in nats."""
    return [x for delta in self._deltas for x in delta.policy_logprobs]

  @property
  def sampling_logprobs(self) -> list[float]:
    """Log-probabilities under the distribution that the tokens were drawn from."""
    return [x for delta in self._deltas for x in delta.sampling_logprobs]

  def as_json(self, *, logprobs: bool) -> dict[str, Any]:
    """Returns the whole choice as JSON."""
    return self.delta_as_json(
      Delta(
        text=self.text,
        tokens=self.tokens,
        policy_logprobs=self.policy_logprobs,
        sampling_logprobs=self.sampling_logprobs,
        offsets=[x for delta in self._deltas for x in delta.offsets],
        finish_reason=None,
      ),
      logprobs=logprobs,
    )

  def delta_as_json(self, delta: Delta, *, logprobs: bool) -> dict[str, Any]:
    """Returns a part as JSON, with the finish reason if it is the last."""
    return {
      'index': self.index,
      'text': delta.text,
      'logprobs': self._logprobs(delta) if logprobs else None,
      'finish_reason': self.finish_reason,
    }

  def _logprobs(self, delta: Delta) -> dict[str, Any]:
    """Returns tokens and log-probabilities in OpenAI's form."""
    return {
      'tokens': [self._tokenizer.decode([token]) for token in delta.tokens],
      'token_logprobs': delta.policy_logprobs,
      'top_logprobs': None,
      'text_offset': delta.offsets,
      'token_ids': delta.tokens,
      'sampling_logprobs': delta.sampling_logprobs,
    }
