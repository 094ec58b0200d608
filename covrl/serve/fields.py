# SPDX-License-Identifier: Apache-2.0
"""Fields of a completion request: types, ranges and defaults."""

from __future__ import annotations

import dataclasses
import difflib
import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from covrl.data import Problem, Tokenizer, prompt_ids
from covrl.data.columns import type_name
from covrl.rollout import Request
from covrl.serve.text import check_stop_string

# Tokens of a response if a request does not state the number, as of OpenAI.
DEFAULT_TOKENS = 16
MAX_CHOICES = 1024
MAX_STOP_STRINGS = 16

# Fields of OpenAI's interface that are accepted with these values only.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
  'best_of': (None, 1),
  'echo': (None, False),
  'frequency_penalty': (None, 0),
  'logit_bias': (None, {}),
  'presence_penalty': (None, 0),
  'suffix': (None, ''),
}
_FIELDS = (
  'logprobs',
  'max_tokens',
  'min_p',
  'model',
  'n',
  'prompt',
  'seed',
  'stop',
  'stop_token_ids',
  'stream',
  'stream_options',
  'temperature',
  'top_k',
  'top_p',
  'user',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
  """A checked completion request.

  Attributes:
    requests: one per choice; those of a prompt are contiguous.
    stop: strings that end each choice.
    prompts: number of prompts.
    prompt_tokens: tokens of all prompts.
    seed: seed of the choices, given or random.
    model: name of the model, if given.
    logprobs: whether to return log-probabilities.
    stream: whether to stream the choices.
    include_usage: whether a stream ends with the numbers of tokens.
  """

  requests: tuple[Request, ...]
  stop: tuple[str, ...]
  prompts: int
  prompt_tokens: int
  seed: int
  model: str | None
  logprobs: bool
  stream: bool
  include_usage: bool


def parse_completion(
  fields: object, tokenizer: Tokenizer, *, max_tokens: int = DEFAULT_TOKENS
) -> Completion:
  """Parses and checks a completion request, without the limits of the engine.

  Choice `i` of a prompt is sampled with `Request(seed=seed, sequence_id=i)`,
  independent of the request's other prompts.

  Args:
    fields: the request, decoded from JSON.
    tokenizer: encodes prompts that are text.
    max_tokens: length limit if the request has none.

  Raises:
    ValueError: a field is unknown, missing, or has a value that is not
      possible; the sentence names it.
  """
  if not isinstance(fields, Mapping):
    raise ValueError(
      f'a request must be a JSON object, got {type_name(fields)}'
    )
  _check_names(fields)
  prompts = _prompts(fields.get('prompt'), tokenizer)
  n = _integer(fields, 'n', 1)
  if not n >= 1 or n * len(prompts) > MAX_CHOICES:
    raise ValueError(
      f'n must be at least 1, and prompts × n at most {MAX_CHOICES}, got n = {n}'
      f' and {len(prompts)} prompts'
    )
  seed = fields.get('seed')
  seed = secrets.randbits(32) if seed is None else _integer(fields, 'seed', 0)
  options = {
    'max_tokens': _integer(fields, 'max_tokens', max_tokens),
    'temperature': _number(fields, 'temperature', 1.0),
    'top_p': _number(fields, 'top_p', 1.0),
    'top_k': _integer(fields, 'top_k', 0),
    'min_p': _number(fields, 'min_p', 0.0),
    'stop_ids': _stop_ids(fields.get('stop_token_ids')),
  }
  stream = _boolean(fields, 'stream')
  return Completion(
    requests=tuple(
      Request(prompt=prompt, seed=seed, sequence_id=i, **options)
      for prompt in prompts
      for i in range(n)
    ),
    stop=_stop_strings(fields.get('stop'), tokenizer),
    prompts=len(prompts),
    prompt_tokens=sum(map(len, prompts)),
    seed=seed,
    model=_text(fields, 'model'),
    logprobs=_logprobs(fields),
    stream=stream,
    include_usage=_include_usage(fields.get('stream_options'), stream),
  )


def _check_names(fields: Mapping[str, Any]) -> None:
  """Refuses unknown fields, and values of fields that are not supported."""
  known = (*_FIELDS, *_UNSUPPORTED)
  for name, value in fields.items():
    if name not in known:
      close_matches = difflib.get_close_matches(name, known, n=1)
      hint = f'; did you mean {close_matches[0]}?' if close_matches else ''
      raise ValueError(
        f'fields must be those of a completion, got {name[:100]!r}{hint}'
      )
    if name in _UNSUPPORTED and value not in _UNSUPPORTED[name]:
      raise ValueError(
        f'{name} must be absent or {_UNSUPPORTED[name][1]!r}, since it is not'
        f' supported, got {str(value)[:100]}'
      )
  _text(fields, 'user')


def _prompts(
  value: object, tokenizer: Tokenizer
) -> tuple[tuple[int, ...], ...]:
  """Returns the ids of one or several prompts, each text or token ids."""
  if isinstance(value, str) or _is_ids(value):
    value = [value]
  if not isinstance(value, list) or not value:
    raise ValueError(
      'prompt must be text, a list of token ids, or a list of such prompts, got'
      f' {"an empty list" if value == [] else type_name(value)}'
    )
  prompts = []
  for prompt in value:
    if isinstance(prompt, str):
      problem = Problem(prompt=prompt, reference=None, source='prompt')
      prompts.append(tuple(prompt_ids(problem, tokenizer)))
    elif _is_ids(prompt):
      prompts.append(tuple(prompt))
    else:
      raise ValueError(
        'prompt must be text, a list of token ids, or a list of such prompts,'
        f' got a list with {type_name(prompt)}'
      )
  return tuple(prompts)


def _is_ids(value: object) -> TypeGuard[list[int]]:
  """Returns whether a value is a non-empty list of integers."""
  return (
    isinstance(value, list)
    and bool(value)
    and all(type(token) is int for token in value)
  )


def _stop_ids(value: object) -> tuple[int, ...]:
  """Returns the field `stop_token_ids` without duplicates."""
  if value is None or value == []:
    return ()
  if not _is_ids(value):
    raise ValueError(
      f'stop_token_ids must be a list of token ids, got {str(value)[:100]}'
    )
  return tuple(dict.fromkeys(value))


def _stop_strings(value: object, tokenizer: Tokenizer) -> tuple[str, ...]:
  """Returns the field `stop` as a tuple."""
  if value is None:
    return ()
  strings: Sequence[object] = value if isinstance(value, list) else [value]
  for stop in strings:
    if not isinstance(stop, str):
      raise ValueError(
        f'stop must be text or a list of texts, got {type_name(stop)}'
      )
    check_stop_string(tokenizer, stop)
  if len(strings) > MAX_STOP_STRINGS:
    raise ValueError(
      f'stop must have at most {MAX_STOP_STRINGS} strings, got {len(strings)}'
    )
  return tuple(str(stop) for stop in strings)


def _logprobs(fields: Mapping[str, Any]) -> bool:
  """Returns whether the field `logprobs` requests log-probabilities."""
  value = fields.get('logprobs')
  if value is None or value is False:
    return False
  if value is not True and _integer(fields, 'logprobs', 0) != 0:
    raise ValueError(
      'logprobs must be 0, the log-probabilities of the sampled tokens alone,'
      f' got {value}'
    )
  return True


def _include_usage(value: object, stream: bool) -> bool:
  """Returns whether the field `stream_options` requests numbers of tokens."""
  if value is None:
    return False
  if not stream:
    raise ValueError('stream must be true with stream_options, got false')
  if not isinstance(value, Mapping) or set(value) - {'include_usage'}:
    raise ValueError(
      'stream_options must be an object with include_usage, got'
      f' {str(value)[:100]}'
    )
  return _boolean(value, 'include_usage')


def _integer(fields: Mapping[str, Any], name: str, default: int) -> int:
  """Returns an integer field, or its default."""
  value = fields.get(name)
  if value is None:
    return default
  if type(value) is not int:
    raise ValueError(f'{name} must be an integer, got {_shown(value)}')
  return value


def _number(fields: Mapping[str, Any], name: str, default: float) -> float:
  """Returns a field that is a finite number, or its default."""
  value = fields.get(name)
  if value is None:
    return default
  if type(value) not in (int, float) or not -math.inf < value < math.inf:
    raise ValueError(f'{name} must be a finite number, got {_shown(value)}')
  try:
    return float(value)
  except OverflowError:
    raise ValueError(
      f'{name} must be a finite number, got a larger one'
    ) from None


def _boolean(fields: Mapping[str, Any], name: str) -> bool:
  """Returns a field that is true or false; false if absent."""
  value = fields.get(name)
  if value is not None and type(value) is not bool:
    raise ValueError(f'{name} must be true or false, got {_shown(value)}')
  return bool(value)


def _text(fields: Mapping[str, Any], name: str) -> str | None:
  """Returns a text field; `None` if absent."""
  value = fields.get(name)
  if value is not None and not isinstance(value, str):
    raise ValueError(f'{name} must be text, got {_shown(value)}')
  return value


def _shown(value: object) -> str:
  """Formats a value for an error, in at most 100 characters."""
  return repr(value)[:100]
