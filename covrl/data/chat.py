# SPDX-License-Identifier: Apache-2.0
"""Chat templates: a conversation as the text that a model was taught.

Templates are jinja2 and come with the model, so they run in a sandbox.
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
  """A template that says that a conversation is none of its kind."""


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
  """A model's own form of a conversation.

  Attributes:
    source: jinja2.
    special_tokens: such as `bos_token`, by the names that templates use.

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
    """The text of a conversation.

    Args:
      messages: each with `role` and `content`, oldest first.
      add_generation_prompt: whether the beginning of the model's answer is
        added.
      **variables: others that the template knows, such as `enable_thinking`.

    Raises:
      ValueError: the template has errors, or refuses the conversation.
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
  """A template, which takes longer to compile than to render."""
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
  # jinja2's own filter escapes what HTML would misread.
  return json.dumps(value, ensure_ascii=False, indent=indent)
