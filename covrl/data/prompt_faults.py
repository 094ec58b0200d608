# SPDX-License-Identifier: Apache-2.0
"""`PromptFaults`, which counts prompts that do not hold the text of their rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

from covrl.data.counts import NamedCounts
from covrl.data.problems import Problem
from covrl.data.prompts import PromptFormat
from covrl.data.tokenizers.tokenizer import Tokenizer

# The end of the reasoning of an answer, which templates leave out of earlier turns.
_REASONING_END = '</think>'
# Parts of other tags in answers, by which templates may select or remove text.
_TAG_PARTS = ('</', '<|', '[/')
# Commands in messages that templates read and remove.
_COMMAND = re.compile(r'/(no_?)?think\b|/system_override\b')


@runtime_checkable
class HasSpecialTokens(Protocol):
  """A tokenizer that lists its special tokens."""

  @property
  def special_tokens(self) -> tuple[str, ...]:
    """Texts that are encoded as one special token each."""
    ...


class PromptFaults:
  """Counts prompts that lack text of a message, and texts with special tokens.

  Bare questions lack the other turns of a conversation. A chat template may
  ignore system messages or earlier turns, or shorten long messages. White space
  does not count, and of answers only the text after their reasoning; answers with
  other tags are not compared. A special token such as `<|im_end|>` in the text of a
  row is encoded as one, and so ends the turn there.

  Args:
    prompt_format: format of the prompts.
    tokenizer: the tokenizer; special tokens of one that does not list them are
      not counted.
  """

  def __init__(self, prompt_format: PromptFormat, tokenizer: Tokenizer) -> None:
    self._format = prompt_format
    tokens = ()
    if isinstance(tokenizer, HasSpecialTokens):
      tokens = tokenizer.special_tokens
    self._token = _pattern(tokens)
    self._total = 0
    self._omitted = NamedCounts()
    self._shortened = NamedCounts()
    self._tokens = NamedCounts()

  def add(self, problem: Problem, prompt: str) -> None:
    """Counts a problem.

    Args:
      problem: the problem before it was formatted.
      prompt: its prompt in the format.
    """
    self._total += 1
    turns = self._format.omitted_turns(problem)
    self._omitted.add(problem.location, (turn['role'] for turn in turns))
    if self._format.template is not None:
      messages = self._format.messages(problem)
      roles = [m['role'] for m in messages if not _is_written(m, prompt)]
      self._shortened.add(problem.location, roles)
    texts = self._format.texts(problem)
    tokens = (token for text in texts for token in self._token.findall(text))
    self._tokens.add(problem.location, tokens)

  def warnings(self) -> list[str]:
    """A sentence for each of the three faults, if there are any."""
    result = []
    if count := self._omitted.number:
      result.append(
        f'the bare questions of {count:,} of {self._total:,} problems are without'
        f' the other turns of their conversations: {self._omitted}'
      )
    if count := self._shortened.number:
      result.append(
        f'the chat template leaves out text of messages in {count:,} of'
        f' {self._total:,} prompts: {self._shortened}'
      )
    count = self._tokens.number
    # Without a chat template the texts of all rows may be formatted prompts.
    if count and (self._format.template or count < self._total):
      result.append(
        f'{count:,} of {self._total:,} problems have special tokens in their text,'
        ' which are encoded as such and may end a turn within the prompt:'
        f' {self._tokens}'
      )
    return result


def _pattern(tokens: Iterable[str]) -> re.Pattern[str]:
  """Matches the longest token, of up to thousands, at a position."""
  # Grouped by the first characters, of which few texts have any.
  ends: dict[str, list[str]] = {}
  for token in sorted(filter(None, tokens), key=len, reverse=True):
    ends.setdefault(token[:3], []).append(re.escape(token[3:]))
  parts = [
    f'{re.escape(start)}(?:{"|".join(rest)})' for start, rest in ends.items()
  ]
  return re.compile('|'.join(parts) or '(?!)')


def _is_written(message: Mapping[str, Any], prompt: str) -> bool:
  """Whether a prompt holds the text of a message."""
  text = message['content']
  if message['role'] == 'assistant':
    text = text.rpartition(_REASONING_END)[2]
    if any(part in text for part in _TAG_PARTS):
      return True
  return text.strip() in prompt or _compact(text) in _compact(prompt)


def _compact(text: str) -> str:
  """The text without white space and commands to templates."""
  return ''.join(_COMMAND.sub('', text).split())
