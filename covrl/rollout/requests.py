# SPDX-License-Identifier: Apache-2.0
"""Requests, each to sample one response with its own options."""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

from covrl.array_checks import check_integer
from covrl.rollout.sampling import check_sampling

FinishReason = Literal['stop', 'length']


class Limits(NamedTuple):
  """Limits of requests.

  Attributes:
    vocab_size: number of token ids.
    prompt_length: tokens of a prompt, at most.
    response_length: tokens of a response, at most.
    num_stop_ids: stop ids of a request, at most.
  """

  vocab_size: int
  prompt_length: int
  response_length: int
  num_stop_ids: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """A prompt, and options of the response to sample.

  Token `t` is drawn with `fold_in(fold_in(key(seed), sequence_id), t)`, and so
  depends on no other request.

  Attributes:
    prompt: token ids.
    max_tokens: length limit of the response.
    seed: seed of the response.
    sequence_id: distinguishes responses to the same prompt with the same seed.
    temperature: see `Sampling`, also for the next three.
    top_p: probability to sample from.
    top_k: number of tokens to sample from.
    min_p: least relative probability of a token.
    stop_ids: tokens that end the response, besides the tokenizer's.
  """

  prompt: tuple[int, ...]
  max_tokens: int
  seed: int
  sequence_id: int = 0
  temperature: float = 1.0
  top_p: float = 1.0
  top_k: int = 0
  min_p: float = 0.0
  stop_ids: tuple[int, ...] = ()

  def check(self, limits: Limits) -> None:
    """Checks the request.

    Raises:
      TypeError: a number is not an integer, or ids are not a tuple.
      ValueError: the prompt does not fit, there is no room for a response of
        this length, or an option is out of range.
    """
    for name, ids in (
      ('prompt', self.prompt),
      ('stop_token_ids', self.stop_ids),
    ):
      if not isinstance(ids, tuple | list):
        raise TypeError(
          f'{name} must be a tuple of token ids, got a {type(ids).__name__}'
        )
      for token in ids:
        check_integer(f'token ids of {name}', token)
        if not 0 <= token < limits.vocab_size:
          raise ValueError(
            f'{name} must have token ids in [0, {limits.vocab_size}), got {token}'
          )
    if not 1 <= len(self.prompt) <= limits.prompt_length:
      raise ValueError(
        f'the prompt must have 1 to {limits.prompt_length} tokens, got'
        f' {len(self.prompt)}'
      )
    check_integer('max_tokens', self.max_tokens, 1, limits.response_length)
    if len(self.stop_ids) > limits.num_stop_ids:
      raise ValueError(
        f'stop_token_ids must have at most {limits.num_stop_ids} entries, got'
        f' {len(self.stop_ids)}'
      )
    for name, number, bound in (
      ('seed', self.seed, 2**32),
      ('sequence_id', self.sequence_id, 2**31),
    ):
      check_integer(name, number, 0, bound - 1)
    check_sampling(self.temperature, self.top_p, self.top_k, self.min_p)


class NewTokens(NamedTuple):
  """Tokens of a response that a segment has sampled.

  Attributes:
    tokens: the tokens, including one that ends the response.
    policy_logprobs: their log-probabilities at temperature 1, in nats.
    sampling_logprobs: the same under the distribution that they were sampled
      from, temperature and truncation included.
    finish_reason: `'stop'` after a stop id, `'length'` at the limit; `None` if
      the response goes on.
  """

  tokens: list[int]
  policy_logprobs: list[float]
  sampling_logprobs: list[float]
  finish_reason: FinishReason | None
