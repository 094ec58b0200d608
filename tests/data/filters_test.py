# SPDX-License-Identifier: Apache-2.0
"""Which problems are used: each reason, their counts, and the same each time."""

import dataclasses
import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covrl.data import (
  ConcatenatedSource,
  FileSource,
  ListSource,
  Overlap,
  Problem,
  PromptStream,
  Sieve,
  key_of,
  sift,
  train_sentencepiece,
)

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'data'
LONG = 'one two three four five six seven eight nine ten eleven twelve thirteen'


def problem(question, reference='1', **fields):
  return Problem(
    prompt=question,
    reference=reference,
    source='s',
    key=key_of(question),
    place=f'row {question!r}',
    **fields,
  )


def source(*questions):
  return ListSource([problem(question) for question in questions])


def prompts(sifted):
  return [sifted.source[n].prompt for n in range(len(sifted.source))]


def test_of_equal_questions_the_first_stays():
  first = source('What is 2?', 'What is 3?', 'what is  2?')
  second = ListSource([problem('What is 3?', '4'), problem('What is 5?')])
  one, two = sift([first, second], Sieve())
  assert prompts(one) == ['What is 2?', 'What is 3?']
  assert prompts(two) == ['What is 5?']
  assert one.objections == {'twice': 1}
  assert str(two) == (
    '1 of 2 problems; left out: 1 twice, with another answer (first: row'
    " 'What is 3?')"
  )
  (both,) = sift([first], Sieve(deduplicate=False))
  assert len(both.source) == 3


def test_prompts_may_not_be_too_long():
  (left,) = sift(
    [source('abc', 'a', 'abcdef', 'ab')],
    Sieve(length=lambda p: len(p.prompt), max_length=2),
  )
  assert prompts(left) == ['a', 'ab']
  assert str(left) == (
    "2 of 4 problems; left out: 2 longer than 2 tokens (first: row 'abc')"
  )


def test_problems_may_be_too_hard_or_too_easy():
  problems = [
    problem(f'{rate}', pass_rate=rate) for rate in (0.0, 0.1, 0.5, 0.9, 1.0)
  ]
  bounds = Sieve(min_pass_rate=0.1, max_pass_rate=0.9)
  (left,) = sift([ListSource([*problems, problem('?')])], bounds)
  assert prompts(left) == ['0.1', '0.5', '0.9']
  assert left.objections == {
    'with a pass rate below 0.1': 1,
    'with a pass rate above 0.9': 1,
    'without a measured pass rate': 1,
  }
  # A measurement goes before what the file says.
  measured = {key_of('0.0'): 0.5, key_of('0.5'): 0.0}
  bounds = dataclasses.replace(bounds, pass_rates=measured)
  (left,) = sift([ListSource(problems)], bounds)
  assert prompts(left) == ['0.0', '0.1', '0.9']


def test_without_bounds_nobody_need_have_measured():
  (left,) = sift([source('a')], Sieve())
  assert len(left.source) == 1


@pytest.mark.parametrize('bounds', [(-0.1, 1), (0.6, 0.5), (0, 1.1)])
def test_bounds_that_are_none(bounds):
  low, high = bounds
  with pytest.raises(ValueError, match='bounded by 0 <= min_pass_rate <= max'):
    Sieve(min_pass_rate=low, max_pass_rate=high)


def test_questions_of_evaluation_sets_are_left_out():
  overlap = Overlap({'suite': [problem(f'{LONG} fourteen')]})
  (left,) = sift(
    [source(f'Now, {LONG.upper()}!', f'zero {LONG[4:]}', 'short')],
    Sieve(overlap=overlap),
  )
  assert prompts(left) == [f'zero {LONG[4:]}', 'short']
  assert left.objections == {'also in suite': 1}


def test_what_questions_of_a_set_share_tells_none_of_them():
  frame = 'Solve the following with care and write the answer on a line: {}'
  suite = [problem(frame.format(f'{LONG} {n}')) for n in ('x', 'y')]
  overlap = Overlap({'suite': suite}, words=8)
  assert overlap.of(frame.format('something else')) is None
  assert overlap.of('six seven eight nine ten eleven twelve thirteen y')
  # The same question twice is one question.
  again = Overlap({'suite': [*suite, suite[0]]}, words=8)
  assert again.of('six seven eight nine ten eleven twelve thirteen x')


def test_a_short_question_overlaps_as_a_whole():
  overlap = Overlap({'suite': [problem('Add 2 and 2.')]})
  assert overlap.of('add 2 and 2') == 'suite'
  assert overlap.of('First add 2 and 2, then 3.') is None
  with pytest.raises(ValueError, match='at least 1 word, got 0'):
    Overlap({}, words=0)


@given(
  st.lists(st.sampled_from('abcdef'), min_size=13, max_size=30),
  st.integers(0, 17),
  st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_any_run_of_n_words_is_found(words, start, upper):
  start = min(start, len(words) - 13)
  overlap = Overlap({'suite': [problem(' '.join(words))]})
  run = ', '.join(words[start : start + 13])
  asked = f'before {run.upper() if upper else run} after'
  assert overlap.of(asked) == 'suite'
  assert overlap.of(' '.join(words[start : start + 12])) is None


def test_nothing_left_is_said():
  with pytest.raises(ValueError, match='to use is required, got s: 0 of 1'):
    sift([source('abc')], Sieve(length=lambda p: 9, max_length=2))


def test_the_published_duplicates_of_a_file_go():
  (left,) = sift([FileSource(GOLDEN / 'dapo_math_17k.parquet')], Sieve())
  assert len(left.source) == 5
  assert left.objections == {'twice': 1}


def test_a_stream_over_other_problems_is_not_resumed():
  def stream(*questions):
    sources = [
      sifted.source for sifted in sift([source(q) for q in questions], Sieve())
    ]
    return PromptStream(
      ConcatenatedSource(sources),
      seed=0,
      prompts_per_draw=2,
      tokenizer=train_sentencepiece(['a b c d']),
      max_prompt_length=4,
      prefetch=0,
    )

  state = stream('a', 'b').get_state()
  stream('a', 'b').set_state(state)
  for others in (('a', 'c'), ('a', 'b', 'c'), ('a',)):
    with pytest.raises(ValueError, match='files of problems have changed'):
      stream(*others).set_state(state)
