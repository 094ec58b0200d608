# SPDX-License-Identifier: Apache-2.0
"""Lines of a file of prompts are sampled in order, each with its own options."""

import json

from serve.conftest import TOKENIZER

from covrl.serve import sample_lines


def sample(engine, lines, **options):
  """Returns the results of lines, each an object or bytes."""
  lines = [x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines]
  settings = {'defaults': {'max_tokens': 8}, 'seed': 0, **options}
  return list(sample_lines(engine, TOKENIZER, lines, **settings))


def test_lines_are_sampled_in_order_with_their_options(engine):
  lines = [
    {'prompt': 'ab', 'id': 'first', 'n': 3},
    b'\n',
    {'prompt': 'ab', 'max_tokens': 2, 'temperature': 0},
    {'prompt': 'ab'},
    {'prompt': [5, 6], 'seed': 7},
  ]
  named, greedy, plain, of_ids = results = sample(engine, lines)
  assert [x['line'] for x in results] == [1, 3, 4, 5]
  assert named['id'] == 'first'
  assert len(named['responses']) == 3
  assert 1 <= greedy['responses'][0]['tokens'] <= 2
  assert len({x['seed'] for x in results}) == 4
  assert (of_ids['seed'], of_ids['prompt']) == (7, [5, 6])
  for result in results:
    for response in result['responses']:
      assert response['logprob'] <= 0
      assert response['finish_reason'] in ('stop', 'length')
  # A line does not depend on others, and its seed repeats it.
  (alone,) = sample(engine, [{'prompt': 'ab', 'seed': plain['seed']}], seed=3)
  assert alone['responses'] == plain['responses']
  assert sample(engine, lines) == results
  assert sample(engine, lines, after_line=3) == results[2:]
  assert sample(engine, lines, seed=1) != results


def test_invalid_lines_have_an_error_and_the_others_are_sampled(engine):
  lines = [
    {'prompt': 'a' * 99},
    {'prompt': 'ab'},
    b'{',
    b'\xff',
    [1],
    {'prompt': 'ab', 'stream': True},
    {'prompt': ['a', 'b']},
    {'prompt': 'ab', 'top_p': 0, 'id': 9},
    {'prompt': 'ab', 'maxtokens': 1},
    b'{"prompt": "ab", "prompt": "c"}',
    {'prompt': 'ab'},
  ]
  results = sample(engine, lines)
  assert [('error' in x) for x in results] == [True, False, *[True] * 8, False]
  assert results[7]['id'] == 9
  for index, sentence in (
    (0, 'the prompt must have 1 to 16 tokens'),
    (2, 'a line must be JSON'),
    (4, 'a line must be an object'),
    (5, 'a line must have no field that is only of covrl serve, got stream'),
    (6, 'a line must have one prompt, got 2'),
    (7, 'top_p must lie in (0, 1], got 0'),
    (8, 'did you mean max_tokens?'),
    (9, "a line must have every name once, got 'prompt' twice"),
  ):
    assert sentence in results[index]['error']


def test_only_a_part_of_a_file_is_in_memory(engine):
  """Many lines, of which the first is the longest."""
  lines_read = []

  def lines():
    for i in range(300):
      lines_read.append(i)
      tokens = 24 if i == 0 else 1 + i % 4
      yield json.dumps({'prompt': 'ab', 'max_tokens': tokens}).encode()

  results = sample_lines(engine, TOKENIZER, lines(), defaults={}, seed=0)
  count = 0
  for count, result in enumerate(results, 1):
    assert result['line'] == count
    assert len(lines_read) - count <= 64
  assert count == 300
