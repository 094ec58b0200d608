# SPDX-License-Identifier: Apache-2.0
"""Completion requests: defaults, prompts, and fields that are refused."""

from types import SimpleNamespace
from typing import Any

import pytest
from serve.conftest import TOKENIZER

from covrl.rollout import NewTokens, Request
from covrl.rollout.requests import Limits
from covrl.serve import sample_lines
from covrl.serve.fields import parse_completion


def parse(**fields):
  """Parses a request with a prompt and other fields."""
  return parse_completion({'prompt': 'ab', **fields}, TOKENIZER)


def test_defaults_are_those_of_the_interface():
  completion = parse()
  (request,) = completion.requests
  assert request.prompt == tuple(TOKENIZER.encode('ab'))
  assert (request.max_tokens, request.temperature, request.top_p) == (16, 1, 1)
  assert (request.top_k, request.min_p, request.stop_ids) == (0, 0, ())
  assert request.seed == completion.seed
  assert not any((completion.stream, completion.logprobs, completion.stop))
  assert parse().seed != completion.seed


def test_null_is_the_default():
  names = ('n', 'seed', 'stop', 'top_k', 'logprobs', 'stream', 'suffix', 'echo')
  assert len(parse(**dict.fromkeys(names)).requests) == 1


def test_null_in_a_line_of_a_file_is_the_option_of_the_command():
  submitted: list[Request] = []

  def submit(request):
    submitted.append(request)
    return len(submitted)

  ended = NewTokens([TOKENIZER.end_ids[0]], [0.0], [0.0], 'stop')
  engine: Any = SimpleNamespace(
    slots=1,
    limits=Limits(TOKENIZER.vocab_size, 16, 64, 4),
    submit=submit,
    step=lambda: {len(submitted): ended},
  )
  options = {'max_tokens': 20, 'temperature': 0.5}
  for line in (
    b'{"prompt": "ab"}',
    b'{"prompt": "ab", "max_tokens": null, "temperature": null, "seed": null}',
  ):
    (result,) = sample_lines(
      engine, TOKENIZER, [line], defaults=options, seed=0
    )
    assert len(result['responses']) == 1
  assert submitted[0] == submitted[1]
  assert submitted[1].max_tokens == 20


@pytest.mark.parametrize(
  ('prompt', 'count'),
  [('a', 1), ([5, 6], 1), (['a', 'b'], 2), ([[5, 6], 'a', [7]], 3)],
)
def test_prompts_are_texts_or_tokens(prompt, count):
  completion = parse(prompt=prompt, n=2, seed=7)
  assert completion.prompts == count
  sequence_ids = [request.sequence_id for request in completion.requests]
  assert sequence_ids == [0, 1] * count
  assert {request.seed for request in completion.requests} == {7}


@pytest.mark.parametrize(
  ('fields', 'sentence'),
  [
    (
      {'temprature': 1},
      "of a completion, got 'temprature'; did you mean temperature",
    ),
    (
      {'best_of': 2},
      'best_of must be absent or 1, since it is not supported, got 2',
    ),
    (
      {'logit_bias': {'1': 2}},
      'logit_bias must be absent or {}, since it is not supported',
    ),
    (
      {'echo': True},
      'echo must be absent or False, since it is not supported, got True',
    ),
    ({'prompt': None}, 'prompt must be text, .* got null'),
    ({'prompt': []}, 'prompt must be text, .* got an empty list'),
    ({'prompt': [1.5]}, 'prompt must be text, .* got a list with'),
    ({'prompt': [True]}, 'prompt must be text, .* got a list with'),
    ({'prompt': '\ud800'}, 'Unicode'),
    ({'n': 0}, 'n must be at least 1, .* got n = 0'),
    ({'n': 1025}, 'prompts × n at most 1024, got n = 1025'),
    ({'n': True}, 'n must be an integer, got True'),
    ({'n': 1.0}, 'n must be an integer, got 1.0'),
    ({'max_tokens': '5'}, "max_tokens must be an integer, got '5'"),
    ({'temperature': '1'}, "temperature must be a finite number, got '1'"),
    ({'temperature': float('nan')}, 'temperature must be a finite number'),
    ({'top_p': float('inf')}, 'top_p must be a finite number, got inf'),
    ({'min_p': 10**400}, 'min_p must be a finite number, got'),
    ({'stop': ['a', 1]}, 'stop must be text or a list of texts'),
    ({'stop': ''}, "stop strings must not be empty, got ''"),
    ({'stop': '<|im_end|>'}, 'special tokens go into stop_token_ids'),
    ({'stop': ['a'] * 17}, 'stop must have at most 16 strings, got 17'),
    ({'stop_token_ids': 3}, 'stop_token_ids must be a list of token ids'),
    ({'logprobs': 5}, 'logprobs must be 0, .* got 5'),
    ({'stream': 1}, 'stream must be true or false, got 1'),
    ({'stream_options': {}}, 'stream must be true with stream_options'),
    (
      {'stream': True, 'stream_options': {'x': 1}},
      'stream_options must be an object with include_usage',
    ),
    ({'model': 3}, 'model must be text, got 3'),
    ({'user': 3}, 'user must be text, got 3'),
  ],
)
def test_invalid_fields_are_refused(fields, sentence):
  with pytest.raises(ValueError, match=sentence):
    parse(**fields)


def test_requests_must_be_objects():
  with pytest.raises(ValueError, match='a request must be a JSON object'):
    parse_completion([1], TOKENIZER)
