# SPDX-License-Identifier: Apache-2.0
"""Tests of problem filters: every reason to drop a problem, and counts."""

import dataclasses
import itertools
import pathlib
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covrl.data import (
  ConcatenatedSource,
  FileSource,
  ListSource,
  NgramIndex,
  Problem,
  ProblemFilter,
  PromptFormat,
  PromptStream,
  filter_sources,
  question_key,
  train_sentencepiece,
)

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'data'
LONG = 'one two three four five six seven eight nine ten eleven twelve thirteen'


def problem(question, reference='1', **fields):
  """A problem with the key of its question."""
  return Problem(
    prompt=question,
    reference=reference,
    source='s',
    key=question_key(question),
    location=f'row {question!r}',
    **fields,
  )


def source(*questions):
  """A source of problems with these questions."""
  return ListSource([problem(question) for question in questions])


def prompts(filtered):
  """Prompts of the problems that a filter keeps."""
  return [filtered.source[n].prompt for n in range(len(filtered.source))]


def test_keeps_the_first_of_equal_questions():
  first = source('What is 2?', 'What is 3?', 'what is  2?')
  second = ListSource([problem('What is 3?', '4'), problem('What is 5?')])
  first_filtered, second_filtered = filter_sources(
    [first, second], ProblemFilter()
  )
  assert prompts(first_filtered) == ['What is 2?', 'What is 3?']
  assert prompts(second_filtered) == ['What is 5?']
  assert first_filtered.dropped == {'repeated': 1}
  assert str(second_filtered) == (
    '1 of 2 problems; left out: 1 repeated, with another answer (first: row'
    " 'What is 3?')"
  )
  unmeasured = ListSource([problem('What is 7?', pass_rate=float('nan'))])
  with pytest.raises(ValueError, match='1 without a measured pass rate'):
    filter_sources([unmeasured], ProblemFilter(min_pass_rate=0.5))
  keyless = [dataclasses.replace(first[n], key='') for n in range(2)]
  (kept,) = filter_sources([ListSource(keyless)], ProblemFilter())
  assert len(kept.source) == 2
  (unfiltered,) = filter_sources([first], ProblemFilter(deduplicate=False))
  assert len(unfiltered.source) == 3


def test_a_copy_of_a_dropped_question_is_judged_itself():
  unmeasured = ListSource([problem('What is 2?'), problem('a', pass_rate=0.5)])
  measured = [problem('What is 2?', pass_rate=rate) for rate in (0.0, 0.4, 0.5)]
  one, two = filter_sources(
    [unmeasured, ListSource(measured)], ProblemFilter(min_pass_rate=0.1)
  )
  assert one.dropped == {'without a measured pass rate': 1}
  assert prompts(two) == ['What is 2?']
  assert two.source[0].pass_rate == 0.4
  assert two.dropped == {'with a pass rate below 0.1': 1, 'repeated': 1}


def test_drops_long_prompts():
  (filtered,) = filter_sources(
    [source('abc', 'a', 'abcdef', 'ab')],
    ProblemFilter(prompt_length=lambda p: len(p.prompt), max_prompt_length=2),
  )
  assert prompts(filtered) == ['a', 'ab']
  assert str(filtered) == (
    "2 of 4 problems; left out: 2 longer than 2 tokens (first: row 'abc')"
  )


def test_drops_problems_outside_the_pass_rate_bounds():
  problems = [
    problem(f'{rate}', pass_rate=rate) for rate in (0.0, 0.1, 0.5, 0.9, 1.0)
  ]
  bounds = ProblemFilter(min_pass_rate=0.1, max_pass_rate=0.9)
  (filtered,) = filter_sources([ListSource([*problems, problem('?')])], bounds)
  assert prompts(filtered) == ['0.1', '0.5', '0.9']
  assert filtered.dropped == {
    'with a pass rate below 0.1': 1,
    'with a pass rate above 0.9': 1,
    'without a measured pass rate': 1,
  }
  # A measurement takes precedence over the file's pass rate.
  measured = {question_key('0.0'): 0.5, question_key('0.5'): 0.0}
  bounds = dataclasses.replace(bounds, pass_rates=measured)
  (filtered,) = filter_sources([ListSource(problems)], bounds)
  assert prompts(filtered) == ['0.0', '0.1', '0.9']


def test_keeps_problems_without_a_pass_rate_if_there_are_no_bounds():
  (filtered,) = filter_sources([source('a')], ProblemFilter())
  assert len(filtered.source) == 1


@pytest.mark.parametrize('bounds', [(-0.1, 1), (0.6, 0.5), (0, 1.1)])
def test_refuses_invalid_bounds(bounds):
  low, high = bounds
  with pytest.raises(ValueError, match='bounded by 0 <= min_pass_rate <= max'):
    ProblemFilter(min_pass_rate=low, max_pass_rate=high)


def test_drops_questions_of_evaluation_sets():
  index = NgramIndex({'suite': [problem(f'{LONG} fourteen')]})
  (filtered,) = filter_sources(
    [source(f'Now, {LONG.upper()}!', f'zero {LONG[4:]}', 'short')],
    ProblemFilter(evaluation_ngrams=index),
  )
  assert prompts(filtered) == [f'zero {LONG[4:]}', 'short']
  assert filtered.dropped == {'also in suite': 1}


def test_all_texts_of_a_prompt_are_compared_with_evaluation_sets():
  roles = ('system', 'user', 'assistant', 'user')
  sets = {
    'short': [problem('Add 2 and 2.')],
    'long': [problem(LONG)],
    'contained': [problem('How many primes are below 9?')],
  }
  leaked = 'add 2 and 2', LONG, 'Think! How many primes are below 9?'
  rows = [
    problem(
      f'Again, number {row}.',
      messages=tuple(
        {'role': role, 'content': text if role == other else f'{role} {row}'}
        for role in roles
      ),
    )
    for row, (text, other) in enumerate(itertools.product(leaked, roles[:3]))
  ]
  criteria = ProblemFilter(evaluation_ngrams=NgramIndex(sets))
  (filtered,) = filter_sources([ListSource([*rows, problem('?')])], criteria)
  assert filtered.dropped == {f'also in {name}': 3 for name in sets}
  assert prompts(filtered) == ['?']
  # A format may leave earlier messages out.
  bare = dataclasses.replace(
    criteria, prompt_texts=PromptFormat(question_only=True).texts
  )
  assert all(bare.drop_reason(row) is None for row in rows)


@pytest.mark.parametrize('form', ['NFC', 'NFD'])
def test_questions_are_recognised_however_their_characters_are_encoded(form):
  question = 'Où est le théâtre après la 3e rue où Noël a dîné hier soir ?'
  normalised_question = unicodedata.normalize(form, question)
  problem = Problem(prompt=question, reference='1', source='s')
  index = NgramIndex({'evaluation': [problem]}, ngram_words=13)
  assert index.find(normalised_question) == 'evaluation'
  assert index.find(normalised_question.replace('3', '\uff13')) == 'evaluation'
  assert question_key(normalised_question) == question_key(question)
  # Compatible characters may differ in meaning: x² is not x2.
  assert question_key('x\u00b2') != question_key('x2')


def test_ignores_ngrams_that_questions_of_a_set_share():
  instruction = (
    'Solve the following with care and write the answer on a line: {}'
  )
  suite = [problem(instruction.format(f'{LONG} {n}')) for n in ('x', 'y')]
  index = NgramIndex({'suite': suite}, ngram_words=8)
  assert index.find(instruction.format('something else')) is None
  assert index.find('six seven eight nine ten eleven twelve thirteen y')
  # Problems of a program may have no key.
  keyless = [dataclasses.replace(each, key='') for each in suite]
  index = NgramIndex({'suite': keyless}, ngram_words=8)
  assert index.find(instruction.format('something else')) is None
  # A repeated question does not share n-grams with itself.
  repeated_index = NgramIndex({'suite': [*suite, suite[0]]}, ngram_words=8)
  assert repeated_index.find(
    'six seven eight nine ten eleven twelve thirteen x'
  )


def test_whole_questions_are_found_whatever_ngrams_a_set_shares():
  short = [
    *(f'What is 12 {operator} 5?' for operator in '+-*/'),
    *(f'What is {sign}7 + 5?' for sign in ('', '-', '±')),
    *(f'Is x {relation} 3 for x = 2?' for relation in ('<', '>', '=', '≤')),
    *(f'What is {n}?' for n in ('1.5', '15', '3', '3!', '(2+3)*4', '2+(3*4)')),
    *(f'Find the roots of x{tail}.' for tail in ('^2 + 1', '^2 − 1', '2 + 1')),
  ]
  # Every 13 consecutive words of these are in both.
  long = [f'{LONG}: what is 12 {operator} 5?' for operator in '+-']
  texts = [*short, *long]
  assert all(
    NgramIndex({'one': [problem(text)]}).find(other) is None
    for text in short
    for other in short
    if other != text
  )
  for keys in (True, False):
    suite = [problem(text) for text in texts]
    if not keys:
      suite = [dataclasses.replace(each, key='') for each in suite]
    index = NgramIndex({'suite': suite})
    assert [index.find(text) for text in texts] == ['suite'] * len(texts)
    assert index.find('what is: 12 − 5') == index.find('What is $12 - 5$?')
    assert index.find('What is 12 − 5 .') == 'suite'
    assert index.find('Find the roots of x² − 1.') == 'suite'
    assert index.find('What is 12 ^ 5?') is None
    assert index.find(f'{LONG}: what is 12 * 5?') is None
  # Equal keys are equal questions, whatever the prompts are.
  formatted = dataclasses.replace(problem('What is 12 + 5?'), prompt='Sum up!')
  index = NgramIndex({'suite': [formatted]})
  assert index.find('What is 12 + 5?') == 'suite'
  assert index.find('Add it.', key=formatted.key) == 'suite'
  # Texts without words and symbols are not one question.
  assert NgramIndex({'suite': [problem('?')]}).find('…') is None


def test_verbatim_copies_of_evaluation_questions_are_dropped_and_counted():
  suite = [problem(f'What is 12 {operator} 5?') for operator in '+-*/']
  (filtered,) = filter_sources(
    [ListSource([*suite, problem('What is 12 ^ 5?')])],
    ProblemFilter(evaluation_ngrams=NgramIndex({'sums': suite})),
  )
  assert prompts(filtered) == ['What is 12 ^ 5?']
  assert filtered.dropped == {'also in sums': 4}


def test_short_questions_match_as_a_whole():
  index = NgramIndex({'suite': [problem('Add 2 and 2.')]})
  assert index.find('add 2 and 2') == 'suite'
  assert index.find('First add 2 and 2, then 3.') is None
  with pytest.raises(ValueError, match='at least 1 word, got 0'):
    NgramIndex({}, ngram_words=0)


def test_questions_within_longer_ones_are_found():
  questions = [
    'How many primes are there below 100?',
    'Find the remainder of $7^{100}$ modulo 13.',
    'What is the value of 12 + 5?',
    'What is the value of 12 - 5?',
    # Every 13 consecutive words of these are in both.
    *(f'{LONG}: what is 12 {operator} 5?' for operator in '+-'),
  ]
  index = NgramIndex({'suite': list(map(problem, questions))})
  for text in (
    '{} Let us think step by step and write the answer within \\boxed{{}}.',
    'Question: {}\nAnswer:',
    'Solve this problem:\n{}\n### Response',
    '{}<think>',
    '**{}** - give a number.',
  ):
    found = [index.find(text.format(question)) for question in questions]
    assert found == ['suite'] * len(questions)
  for text in (
    'How many primes are there below 1000? Think step by step.',
    'How many primes are there below 100! Think step by step.',
    'Now find the remainder of $7^{101}$ modulo 13.',
    'Tell me: What is the value of 12 * 5?',
    'What is the value of 12 + 5 * 3?',
    'What is the value of 12 - 5x?',
    'What is the value of 12 + 5.5?',
    'What is the value of 12 + 5^x?',
  ):
    assert index.find(text) is None
  # Fewer than 5 words may occur by chance.
  four = NgramIndex({'suite': [problem('What is 2 + 2?')]})
  assert four.find('Question: What is 2 + 2? Think.') is None
  five = NgramIndex({'suite': [problem('What then is 2 + 2?')]})
  assert five.find('Question: What then is 2 + 2? Think.') == 'suite'


@given(
  st.lists(st.sampled_from('abcdef'), min_size=13, max_size=30),
  st.integers(0, 17),
  st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_finds_every_ngram(words, start, upper):
  start = min(start, len(words) - 13)
  index = NgramIndex({'suite': [problem(' '.join(words))]})
  ngram = ', '.join(words[start : start + 13])
  question = f'before {ngram.upper() if upper else ngram} after'
  assert index.find(question) == 'suite'
  assert index.find(' '.join(words[start : start + 12])) is None


def test_refuses_a_source_without_kept_problems():
  with pytest.raises(ValueError, match='to use, got s: 0 of 1'):
    filter_sources(
      [source('abc')],
      ProblemFilter(prompt_length=lambda p: 9, max_prompt_length=2),
    )


def test_drops_duplicates_of_a_file():
  (filtered,) = filter_sources(
    [FileSource(GOLDEN / 'dapo_math_17k.parquet')], ProblemFilter()
  )
  assert len(filtered.source) == 5
  assert filtered.dropped == {'repeated': 1}


def test_streams_refuse_the_state_of_other_problems():
  def stream(*questions):
    sources = [
      filtered.source
      for filtered in filter_sources(
        [source(q) for q in questions], ProblemFilter()
      )
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
