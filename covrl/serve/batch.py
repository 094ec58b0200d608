# SPDX-License-Identifier: Apache-2.0
"""Samples responses to the prompts of a file, with options per line."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from covrl.data import Tokenizer
from covrl.data.columns import type_name
from covrl.data.json_text import parse_json
from covrl.rollout import RequestEngine
from covrl.serve.choices import Choice
from covrl.serve.fields import parse_completion
from covrl.serve.text import NotFiniteError, ResponseText

# Fields of requests to a server that lines of a file must not have.
_SERVER_FIELDS = ('logprobs', 'model', 'stream', 'stream_options', 'user')
# Lines in memory, per slot of the engine.
_LINES_PER_SLOT = 16


def sample_lines(
  engine: RequestEngine,
  tokenizer: Tokenizer,
  lines: Iterable[bytes],
  *,
  defaults: Mapping[str, Any],
  seed: int,
  render: Callable[[str], str] = lambda prompt: prompt,
  after_line: int = 0,
) -> Iterator[dict[str, Any]]:
  """Samples responses to prompts, a JSON object per line.

  A line has a `prompt` and the options of `covrl serve`, and may have an `id`
  that is repeated in the result. The seed of a line without one is derived from
  `seed` and the number of the line. An invalid line has an `error` as its
  result, and the others are sampled. Only a part of the lines is in memory.

  Args:
    engine: an engine without other requests.
    tokenizer: the policy's tokenizer.
    lines: lines of JSON; empty ones are skipped.
    defaults: options of lines that do not have them, or have null.
    seed: seed of the file.
    render: formats a prompt that is text.
    after_line: number of a line; it and those before it are skipped. The results
      of the others are the same.

  Yields:
    A result per line, in order.
  """
  numbered_lines = (
    (number, line)
    for number, line in enumerate(lines, 1)
    if number > after_line and line.strip()
  )
  batch = _Batch(engine, tokenizer, defaults, seed, render)
  while True:
    while len(batch.lines) < _LINES_PER_SLOT * engine.slots:
      entry = next(numbered_lines, None)
      if entry is None:
        break
      batch.add(*entry)
    if not batch.lines:
      return
    if batch.choices:
      batch.step()
    while batch.lines and batch.lines[0].is_finished:
      yield batch.lines.popleft().result()


@dataclasses.dataclass
class _Line:
  """A line and its responses so far.

  Attributes:
    id_fields: entries of the result that identify the line.
    error: error of an invalid line; empty for others.
    choices: responses, in order.
  """

  id_fields: dict[str, Any]
  error: str = ''
  choices: list[Choice] = dataclasses.field(default_factory=list)

  @property
  def is_finished(self) -> bool:
    """Whether all responses are finished; true for an invalid line."""
    return all(choice.finish_reason is not None for choice in self.choices)

  def result(self) -> dict[str, Any]:
    """Returns the line's result."""
    if self.error:
      return {**self.id_fields, 'error': self.error}
    responses = [
      {
        'text': choice.text,
        'finish_reason': choice.finish_reason,
        'tokens': len(choice.tokens),
        'logprob': sum(choice.policy_logprobs),
        'sampling_logprob': sum(choice.sampling_logprobs),
      }
      for choice in self.choices
    ]
    return {**self.id_fields, 'responses': responses}


class _Batch:
  """The lines that are being sampled."""

  def __init__(
    self,
    engine: RequestEngine,
    tokenizer: Tokenizer,
    defaults: Mapping[str, Any],
    seed: int,
    render: Callable[[str], str],
  ) -> None:
    self.lines: collections.deque[_Line] = collections.deque()
    self.choices: dict[int, tuple[Choice, ResponseText]] = {}
    self._engine, self._tokenizer = engine, tokenizer
    self._defaults, self._seed, self._render = defaults, seed, render

  def add(self, number: int, text: bytes) -> None:
    """Submits the requests of a line."""
    line = _Line({'line': number})
    self.lines.append(line)
    try:
      self._submit(line, number, text)
    except ValueError as error:
      line.error = str(error)

  def _submit(self, line: _Line, number: int, text: bytes) -> None:
    """Parses a line and submits its requests."""
    fields = parse_json(text, 'a line')
    if not isinstance(fields, dict):
      raise ValueError(f'a line must be an object, got {type_name(fields)}')
    if 'id' in fields:
      line.id_fields['id'] = fields.pop('id')
    for name in _SERVER_FIELDS:
      if name in fields:
        raise ValueError(
          f'a line must have no field that is only of covrl serve, got {name}'
        )
    prompt = fields.get('prompt')
    line.id_fields['prompt'] = prompt
    if isinstance(prompt, str):
      fields['prompt'] = self._render(prompt)
    seed = np.random.SeedSequence([self._seed, number]).generate_state(1)[0]
    line_options = {
      name: value for name, value in fields.items() if value is not None
    }
    completion = parse_completion(
      {**self._defaults, 'seed': int(seed), **line_options}, self._tokenizer
    )
    if completion.prompts != 1:
      raise ValueError(f'a line must have one prompt, got {completion.prompts}')
    for request in completion.requests:
      request.check(self._engine.limits)
    line.id_fields['seed'] = completion.seed
    for index, request in enumerate(completion.requests):
      choice = Choice(index, self._tokenizer)
      line.choices.append(choice)
      response = ResponseText(self._tokenizer, completion.stop)
      self.choices[self._engine.submit(request)] = choice, response

  def step(self) -> None:
    """Decodes a segment of tokens of all submitted responses."""
    for request_number, new_tokens in self._engine.step().items():
      choice, response = self.choices[request_number]
      try:
        delta = response.append(new_tokens)
      except NotFiniteError as error:
        self._fail(choice, str(error))
        del self.choices[request_number]
        if new_tokens.finish_reason is None:
          self._engine.cancel(request_number)
        continue
      choice.add(delta)
      if delta.finish_reason is not None:
        del self.choices[request_number]
        if new_tokens.finish_reason is None:
          self._engine.cancel(request_number)

  def _fail(self, choice: Choice, error: str) -> None:
    """Ends a choice, and sets the error of its line."""
    choice.finish_reason = 'error'
    for line in self.lines:
      if any(other is choice for other in line.choices):
        line.error = error
