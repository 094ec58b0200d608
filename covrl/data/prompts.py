# SPDX-License-Identifier: Apache-2.0
"""Prompt formats: instructions and chat templates around a problem's question."""

from __future__ import annotations

import dataclasses
import datetime
import functools
from collections.abc import Mapping
from typing import Any

from covrl.data.chat import ChatTemplate
from covrl.data.fingerprints import text_fingerprint
from covrl.data.problems import Problem, ProblemSource, source_fingerprint
from covrl.data.sources import check_outermost

QUESTION = '{question}'

# Some templates write the date; a resumed run must make the same prompts.
PROMPT_DATE = datetime.datetime(2024, 7, 26)

# Kinds of problems without the instruction of their dataset.
_KINDS_WITHOUT_INSTRUCTION = {'math_dapo': 'math'}

# Roles of messages that hold instructions instead of a part of the conversation.
_INSTRUCTION_ROLES = ('system', 'developer')


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptFormat:
  """Formats the question or conversation of a problem as a prompt.

  Attributes:
    template: the model's chat template; `None` to use `plain_template` instead.
    variables: variables of the chat template, such as `enable_thinking`.
    plain_template: prompt with `{question}` in place of the messages.
    system: system message; empty for none.
    instructions: text after a bare question, by kind of problem.
    question_only: whether to replace conversations by their last question.

  >>> prompts = PromptFormat(
  ...   plain_template='Q: {question}', instructions={'math': 'Use a box.'}
  ... )
  >>> sums = Problem(prompt='1 + 1?', reference='2', source='', kind='math')
  >>> prompts(sums).prompt
  'Q: 1 + 1?\\nUse a box.'
  """

  template: ChatTemplate | None = None
  variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  plain_template: str = QUESTION
  system: str = ''
  instructions: Mapping[str, str] = dataclasses.field(default_factory=dict)
  question_only: bool = False

  def __post_init__(self) -> None:
    if QUESTION not in self.plain_template:
      raise ValueError(
        f'a template of prompts must have {QUESTION} in it,'
        f' got {self.plain_template!r}'
      )

  @property
  def fingerprint(self) -> str:
    """Digest of the format; where its template is stored does not matter."""
    template = self.template and dataclasses.replace(self.template, file='')
    return text_fingerprint(repr(dataclasses.replace(self, template=template)))

  def __call__(self, problem: Problem) -> Problem:
    """The problem with a formatted prompt.

    Raises:
      ValueError: the template rejects the conversation.
    """
    messages = self.messages(problem)
    kind = self.formatted_kind(problem.kind)
    problem = dataclasses.replace(problem, kind=kind)
    if self.template is None:
      content = '\n\n'.join(message['content'] for message in messages)
      prompt = self.plain_template.replace(QUESTION, content)
      return dataclasses.replace(problem, prompt=prompt)
    try:
      prompt = self.template.render(messages, now=PROMPT_DATE, **self.variables)
    except ValueError as error:
      raise ValueError(f'{problem.location}: {error}') from None
    return dataclasses.replace(problem, prompt=prompt)

  def formatted_kind(self, kind: str) -> str:
    """`Problem.kind` after formatting, for a problem of a kind."""
    if self.question_only:
      return _KINDS_WITHOUT_INSTRUCTION.get(kind, kind)
    return kind

  def texts(self, problem: Problem) -> list[str]:
    """The texts of a problem in its prompt: its conversation or its question."""
    messages = () if self.question_only else problem.messages
    return [message['content'] for message in messages] or [problem.prompt]

  def omitted_turns(self, problem: Problem) -> list[Mapping[str, Any]]:
    """Turns of a conversation that `question_only` leaves out.

    Messages with instructions, of the system or developer, are not turns.
    """
    if not self.question_only:
      return []
    turns = [m for m in problem.messages if m['role'] not in _INSTRUCTION_ROLES]
    question = next((m for m in reversed(turns) if m['role'] == 'user'), None)
    return [turn for turn in turns if turn is not question]

  def messages(self, problem: Problem) -> list[Mapping[str, str]]:
    """Messages of the formatted conversation."""
    messages: list[Mapping[str, str]] = []
    if not self.question_only:
      messages.extend(problem.messages)
    if not messages:
      kind = self.formatted_kind(problem.kind)
      instruction = self.instructions.get(kind, '')
      content = '\n'.join(filter(None, (problem.prompt, instruction)))
      messages = [{'role': 'user', 'content': content}]
    if self.system and messages[0]['role'] != 'system':
      messages.insert(0, {'role': 'system', 'content': self.system})
    return messages


class FormattedSource:
  """A source with formatted prompts.

  Args:
    source: problems with bare questions or conversations; of a mixture, each of
      its sources.
    prompt_format: format of the prompts.

  Raises:
    TypeError: the source is a mixture, whose weights would be lost.
  """

  def __init__(
    self, source: ProblemSource, prompt_format: PromptFormat
  ) -> None:
    check_outermost(source, 'FormattedSource')
    self._source = source
    self._format = prompt_format
    self.names = source.names

  @functools.cached_property
  def fingerprint(self) -> str:
    """Digest of the problems and the format of the prompts."""
    return text_fingerprint(
      source_fingerprint(self._source), self._format.fingerprint
    )

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Problem:
    return self._format(self._source[index])
