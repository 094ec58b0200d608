# SPDX-License-Identifier: Apache-2.0
"""Chat templates: jinja2 templates that format a conversation as text.

Templates come with models of any origin, so they run in a sandbox.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]


class TemplateRefusal(ValueError):
  """Raised by a template that does not support a conversation."""


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
  """A model's chat template.

  Attributes:
    source: the template, in jinja2.
    special_tokens: text of special tokens by name in the template, such as
      `bos_token`.

  >>> template = ChatTemplate(
  ...   "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}"
  ...   '{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}'
  ... )
  >>> template.render([{'role': 'user', 'content': '1 + 1?'}])
  '<user>1 + 1?<assistant>'
  """

  source: str
  special_tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def render(
    self,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    **variables: Any,
  ) -> str:
    """Formats a conversation.

    Args:
      messages: each with `role` and `content`, oldest first.
      add_generation_prompt: whether to append the start of the model's answer.
      **variables: further variables of the template, such as
        `enable_thinking`.

    Raises:
      ValueError: the template is invalid, or rejects the conversation.
    """
    import jinja2

    try:
      return _compiled(self.source).render(
        messages=messages,
        add_generation_prompt=add_generation_prompt,
        **{**self.special_tokens, **variables},
      )
    except jinja2.TemplateError as error:
      raise ValueError(
        f'a chat template must be jinja2 that renders, got: {error}'
      ) from None


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> Any:
  """The compiled template, cached because compiling is slower than rendering."""
  from jinja2.ext import loopcontrols
  from jinja2.sandbox import ImmutableSandboxedEnvironment

  environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
  )
  environment.filters['tojson'] = _to_json
  environment.globals['raise_exception'] = _refuse
  environment.globals['strftime_now'] = _now
  return environment.from_string(source)


def _refuse(reason: str) -> None:
  raise TemplateRefusal(f'the chat template refuses this: {reason}')


def _now(form: str) -> str:
  return datetime.datetime.now().strftime(form)


def _to_json(value: Any, indent: int | None = None) -> str:
  # The filter of jinja2 itself escapes characters for HTML.
  return json.dumps(value, ensure_ascii=False, indent=indent)
