# SPDX-License-Identifier: Apache-2.0
"""Answers to completion requests in OpenAI's form, whole or in parts."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from typing import Any

from covrl.data import Tokenizer
from covrl.serve.choices import Choice
from covrl.serve.fields import Completion
from covrl.serve.text import Delta

# Queue of pairs: index of a choice, and its new part or the error that ended it.
Updates = asyncio.Queue[tuple[int, Delta | Exception]]


class Answer:
  """The choices of a completion, and OpenAI's form of them."""

  def __init__(
    self, completion: Completion, tokenizer: Tokenizer, model: str
  ) -> None:
    self.completion = completion
    self._choices = [
      Choice(index, tokenizer) for index in range(len(completion.requests))
    ]
    self._unfinished = len(self._choices)
    self._common_fields = {
      'id': f'cmpl-{uuid.uuid4().hex}',
      'object': 'text_completion',
      'created': int(time.time()),
      'model': model,
      'seed': completion.seed,
    }

  @property
  def is_finished(self) -> bool:
    """Whether all choices are finished."""
    return not self._unfinished

  def add(self, index: int, delta: Delta) -> dict[str, Any]:
    """Adds a new part to a choice; returns the part in OpenAI's form."""
    choice = self._choices[index]
    choice.add(delta)
    self._unfinished -= delta.finish_reason is not None
    return choice.delta_as_json(delta, logprobs=self.completion.logprobs)

  async def finish(self, updates: Updates) -> None:
    """Waits for all choices.

    Raises:
      WorkerStoppedError: the engine has ended.
      NotFiniteError: the logits of a response are not finite.
    """
    while not self.is_finished:
      index, delta = await updates.get()
      if isinstance(delta, Exception):
        raise delta
      self.add(index, delta)

  def body(self) -> dict[str, Any]:
    """Returns the whole answer in OpenAI's form."""
    logprobs = self.completion.logprobs
    choices = [choice.as_json(logprobs=logprobs) for choice in self._choices]
    return {**self._common_fields, 'choices': choices, 'usage': self._usage()}

  def chunk(
    self, choices: Sequence[dict[str, Any]], *, usage: bool = False
  ) -> dict[str, Any]:
    """Returns a part of a streamed answer in OpenAI's form."""
    chunk: dict[str, Any] = {**self._common_fields, 'choices': choices}
    if self.completion.include_usage:
      chunk['usage'] = self._usage() if usage else None
    return chunk

  def _usage(self) -> dict[str, int]:
    """Returns the numbers of tokens in OpenAI's form."""
    prompt = self.completion.prompt_tokens
    sampled = sum(len(choice.tokens) for choice in self._choices)
    return {
      'prompt_tokens': prompt,
      'completion_tokens': sampled,
      'total_tokens': prompt + sampled,
    }
