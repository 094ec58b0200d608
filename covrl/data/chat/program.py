# SPDX-License-Identifier: Apache-2.0
"""Program that renders chat templates: one JSON request and reply per line.

It runs as a script, so that it starts without JAX and imports nothing of covrl.
A request has the fields `source`, `messages`, `variables`, `now` (ISO 8601;
`null` for the current time), `characters` (maximum length of the output) and
`seconds` (limit of CPU time). A reply has `text`, `refused` (the template's own
reason) or `error`.

The dialect is that of transformers: its extensions, filters and functions.
"""

from __future__ import annotations

import datetime
import functools
import json
import random
import resource
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

_MAX_REASON = 200  # characters of the reason for which a template fails
# Names of the field of a message with the model's reasoning; the first is standard.
_REASONING_FIELDS = ('reasoning_content', 'thinking', 'reasoning')


class RefusalError(Exception):
  """Raised by `raise_exception` in a template."""


class OutputError(Exception):
  """Raised when a template writes too much text, or invalid Unicode."""


class Generation(jinja2.ext.Extension):
  """`{% generation %}`, which marks the model's turns and adds no text."""

  def __init__(self, environment: jinja2.Environment) -> None:
    super().__init__(environment)
    self.tags = {'generation'}

  def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
    """Parses a block, whose assignments are not visible outside."""
    line = next(parser.stream).lineno
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    return jinja2.nodes.Scope(body, lineno=line)


def main(memory: int) -> None:
  """Answers requests on standard input until it is closed.

  Args:
    memory: bytes of address space, at most.
  """
  _limit(resource.RLIMIT_AS, memory)
  _limit(resource.RLIMIT_CORE, 0)
  for line in sys.stdin.buffer:
    request = json.loads(line)
    _limit_time(request['seconds'])
    reply = json.dumps(answer(request)).encode()
    sys.stdout.buffer.write(reply + b'\n')
    sys.stdout.buffer.flush()


def answer(request: Mapping[str, Any]) -> dict[str, str]:
  """Renders the template of a request."""
  try:
    # Some filters choose at random; equal conversations give equal prompts.
    random.seed(0)
    template = _compiled(request['source'])
    pieces = template.generate(
      messages=_messages(request['messages']),
      strftime_now=functools.partial(_strftime, request['now']),
      **request['variables'],
    )
    return {'text': _joined(pieces, request['characters'])}
  except RefusalError as error:
    return {'refused': _one_line(str(error))}
  except (jinja2.TemplateError, OutputError) as error:
    return {'error': _one_line(str(error))}
  except Exception as error:
    return {'error': _one_line(f'{type(error).__name__}: {error}')}


def _limit_time(seconds: int) -> None:
  """Ends the process when it takes this much more CPU time."""
  _limit(resource.RLIMIT_CPU, int(time.process_time()) + 1 + seconds)


def _limit(resource_id: int, value: int) -> None:
  """Sets a resource limit of this process, at most that of the system."""
  _, hard = resource.getrlimit(resource_id)
  if hard != resource.RLIM_INFINITY:
    value = min(value, hard)
  resource.setrlimit(resource_id, (value, hard))


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
  """Compiles a template, in the dialect of transformers."""
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[Generation, jinja2.ext.loopcontrols],
  )
  environment.filters['tojson'] = _to_json
  environment.globals['raise_exception'] = _refuse
  return environment.from_string(source)


def _messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Messages without absent fields, with the reasoning under both names."""
  result = []
  for message in messages:
    fields = {name: v for name, v in message.items() if v is not None}
    reasonings = [fields[name] for name in _REASONING_FIELDS if name in fields]
    if reasonings:
      fields = {
        'thinking': reasonings[0],
        **fields,
        'reasoning_content': reasonings[0],
      }
    result.append(fields)
  return result


def _joined(pieces: Iterable[str], limit: int) -> str:
  """The whole text of a rendered template, of at most `limit` characters."""
  parts: list[str] = []
  length = 0
  for piece in pieces:
    length += len(piece)
    if length > limit:
      raise OutputError(f'more than {limit:,} characters')
    parts.append(piece)
  text = ''.join(parts)
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise OutputError(f'the lone surrogate {text[error.start]!r}') from None
  return text


def _refuse(reason: Any) -> None:
  """The function `raise_exception` of templates."""
  raise RefusalError(str(reason))


def _strftime(now: str | None, format_string: str) -> str:
  """The function `strftime_now` of templates; `now` is the time to format."""
  time_ = (
    datetime.datetime.now()
    if now is None
    else datetime.datetime.fromisoformat(now)
  )
  return time_.strftime(format_string)


def _to_json(
  value: Any,
  ensure_ascii: bool = False,
  indent: int | str | None = None,
  separators: tuple[str, str] | None = None,
  sort_keys: bool = False,
) -> str:
  """The filter `tojson` of templates."""
  # The filter of jinja2 itself escapes characters for HTML.
  return json.dumps(
    value,
    ensure_ascii=ensure_ascii,
    indent=indent,
    separators=separators,
    sort_keys=sort_keys,
  )


def _one_line(text: str) -> str:
  """The text on one line of limited length."""
  line = ' '.join(text.split()).removesuffix(':')
  return line if len(line) <= _MAX_REASON else f'{line[:_MAX_REASON]}…'


if __name__ == '__main__':
  main(int(sys.argv[1]))
