# SPDX-License-Identifier: Apache-2.0
"""How a question is put to the policy: instruction, conversation, template."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping

from covrl.data.chat import ChatTemplate
from covrl.data.problems import Problem, ProblemSource, fingerprint_of
from covrl.data.tokenizer import Tokenizer

QUESTION = '{question}'

# Some templates write the date; a run that is resumed must ask as it did before.
_DATE = datetime.datetime(2024, 7, 26)

# What a question is without the frame that asked for another form of answer.
_BARE_KINDS = {'math_dapo': 'math'}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptForm:
  """From bare questions, or conversations, to the text that is continued.

  Attributes:
    template: of a conversation; `None` puts what is asked into `text`.
    begin: the text of the token that the tokenizer puts before every prompt,
      which a template must not write a second time; empty for none.
    text: has `{question}` where the question goes.
    system: the first message; empty for none.
    instructions: what is said behind a bare question, by the kind of problem.
    bare: whether conversations are left aside, and their last question asked
      as a bare one is.

  >>> form = PromptForm(text='Q: {question}', instructions={'math': 'Use a box.'})
  >>> form(Problem(prompt='1 + 1?', reference='2', source='', kind='math')).prompt
  'Q: 1 + 1?\\nUse a box.'
  """

  template: ChatTemplate | None = None
  begin: str = ''
  text: str = QUESTION
  system: str = ''
  instructions: Mapping[str, str] = dataclasses.field(default_factory=dict)
  bare: bool = False

  def __post_init__(self) -> None:
    if QUESTION not in self.text:
      raise ValueError(
        f'A template of prompts must have {QUESTION} in it, got {self.text!r}.'
      )

  def __call__(self, problem: Problem) -> Problem:
    """The same problem, its prompt as the policy is given it.

    Raises:
      ValueError: the template refuses the conversation.
    """
    problem = dataclasses.replace(problem, kind=self.kind_of(problem.kind))
    messages = self._messages(problem)
    if self.template is None:
      asked = '\n\n'.join(message['content'] for message in messages)
      return dataclasses.replace(
        problem, prompt=self.text.replace(QUESTION, asked)
      )
    try:
      prompt = self.template.render(messages, strftime_now=_DATE.strftime)
    except ValueError as error:
      raise ValueError(f'{problem.place}: {error}') from None
    return dataclasses.replace(
      problem, prompt=prompt.removeprefix(self.begin) if self.begin else prompt
    )

  def kind_of(self, kind: str) -> str:
    """The kind of a problem of this kind, once it is asked in this form."""
    return _BARE_KINDS.get(kind, kind) if self.bare else kind

  def _messages(self, problem: Problem) -> list[Mapping[str, str]]:
    messages: list[Mapping[str, str]] = []
    if not self.bare:
      messages.extend(problem.messages)
    if not messages:
      instruction = self.instructions.get(problem.kind, '')
      asked = '\n'.join(filter(None, (problem.prompt, instruction)))
      messages = [{'role': 'user', 'content': asked}]
    if self.system and messages[0]['role'] != 'system':
      messages.insert(0, {'role': 'system', 'content': self.system})
    return messages


def begin_of(template: ChatTemplate, tokenizer: Tokenizer) -> str:
  """The begin token's text, if both template and tokenizer write one."""
  if tokenizer.bos_id is None:
    return ''
  return template.special_tokens.get('bos_token', '')


class AskedSource:
  """A source whose prompts are in a form."""

  def __init__(self, source: ProblemSource, form: PromptForm) -> None:
    self._source = source
    self._form = form
    self.names = source.names
    self.fingerprint = fingerprint_of(source)

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Problem:
    return self._form(self._source[index])
