# SPDX-License-Identifier: Apache-2.0
"""`ChatTemplate`, a model's format of conversations."""

from __future__ import annotations

import dataclasses
import datetime
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from covrl.data.chat.process import ProcessEndedError, RenderingProcess

Message = Mapping[str, Any]


class TemplateRefusal(ValueError):
  """Raised by a template that does not support a conversation."""


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
  """A model's chat template, in the dialect of transformers.

  It is rendered in another process, within limits on time, memory and length,
  see `covrl.data.chat.process`.

  Attributes:
    source: the template, in jinja2.
    special_tokens: text of special tokens by name in the template, such as
      `bos_token`.
    file: file of the template, for error messages; empty if unknown.

  >>> template = ChatTemplate(
  ...   "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}"
  ...   '{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}'
  ... )
  >>> template.render([{'role': 'user', 'content': '1 + 1?'}])
  '<user>1 + 1?<assistant>'
  """

  source: str
  special_tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
  file: str = ''

  def render(
    self,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    now: datetime.datetime | None = None,
    **variables: Any,
  ) -> str:
    """Formats a conversation.

    Args:
      messages: each with `role` and `content`, oldest first.
      add_generation_prompt: whether to append the start of the model's answer.
      tools: JSON schemas of functions that the model may call.
      documents: each with `title` and `text`.
      now: time of `strftime_now`; the current time unless given.
      **variables: further variables of the template, such as
        `enable_thinking`.

    Raises:
      ValueError: the template is invalid, rejects the conversation, or takes
        too much time, memory or text; or a variable is not JSON.
    """
    request = {
      'source': self.source,
      'messages': list(messages),
      'variables': {
        'tools': tools,
        'documents': documents,
        'add_generation_prompt': add_generation_prompt,
        **self.special_tokens,
        **variables,
      },
      'now': None if now is None else now.isoformat(),
    }
    try:
      reply = _process().render(request)
    except ProcessEndedError as error:
      reply = {'error': str(error)}
    except (TypeError, ValueError, RecursionError) as error:
      raise ValueError(
        f'{self._prefix}messages and variables of a chat template must be JSON'
        f' values, got: {error}'
      ) from None
    if 'refused' in reply:
      raise TemplateRefusal(
        f'{self._prefix}the chat template must support the conversation, got its'
        f' refusal: {reply["refused"]}'
      )
    if 'error' in reply:
      raise ValueError(
        f'{self._prefix}a chat template must be jinja2 that renders, got:'
        f' {reply["error"]}'
      )
    return reply['text']

  @property
  def _prefix(self) -> str:
    return f'{self.file}: ' if self.file else ''


@functools.cache
def _process() -> RenderingProcess:
  """The process that renders all templates."""
  return RenderingProcess()
