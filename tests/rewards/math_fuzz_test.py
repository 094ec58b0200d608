# SPDX-License-Identifier: Apache-2.0
"""Grading of random texts, and of all pairs of answers of the battery."""

import itertools
import random
import resource
import time
import zlib
from collections.abc import Iterator

import pytest
from rewards import math_battery

from covrl.rewards import Outcome, score_math
from covrl.rewards.math import grading
from covrl.rewards.math.extraction import RULES, extract, reference_answer
from covrl.rewards.math.grading import compare

pytestmark = pytest.mark.usefixtures('no_math_verify')

# Answers that are meant to exhaust a grader, or to break it.
ADVERSARIAL = ('hangs', 'injections')
MAX_BYTES = 1 << 30
# One of this many pairs across categories is compared.
PAIRS_PER_SAMPLE = 100

MATCHES = math_battery.FILE.with_name('math_matches.txt')


def random_text(generator: random.Random, answers: list[str]) -> str:
  """Returns random bytes as text, or damaged answers."""
  if generator.random() < 0.5:
    data = generator.randbytes(generator.randrange(1, 200))
    errors = generator.choice(['replace', 'surrogateescape'])
    return data.decode(generator.choice(['utf-8', 'latin-1']), errors)
  text = ''.join(generator.choices(answers, k=generator.randrange(1, 4)))
  for _ in range(generator.randrange(6)):
    start = generator.randrange(len(text) + 1)
    end = start + generator.randrange(4)
    text = (
      text[:start] + generator.choice([*'{}()\\^_:,|\x00 \ud800']) + text[end:]
    )
  return text


def outcome_of(response: str, reference: str, rule: str) -> Outcome | str:
  """Returns the outcome, or the message of an invalid reference."""
  try:
    return score_math(response, reference, rule=rule)
  except ValueError as error:
    return str(error)


def check_random_texts(seed: int, count: int) -> None:
  """Grades random texts by random rules, within limits of time and memory."""
  generator = random.Random(seed)
  answers = [pair.reference for pair in math_battery.pairs()]
  memory_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  for _ in range(count):
    answer, reference = (random_text(generator, answers) for _ in range(2))
    rule = generator.choice(list(RULES))
    boxed = {'boxed': f'\\boxed{{{answer}}}', 'gsm8k': f'#### {answer}'}
    start = time.process_time()
    for response in (answer, boxed.get(rule, f'Answer: {answer}')):
      outcome = outcome_of(response, reference, rule)
      if isinstance(outcome, str):
        assert outcome.startswith('a reference answer must be')
        assert '\n' not in outcome
      else:
        assert outcome.has_score
    assert time.process_time() - start < 4.0, (answer, reference)
  memory_growth = (
    resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_before
  )
  assert memory_growth * 1024 < MAX_BYTES


def test_any_text_gets_an_outcome_or_one_error():
  check_random_texts(0, 100)


@pytest.mark.slow
@pytest.mark.parametrize('seed', [1, 2])
def test_a_thousand_texts_get_an_outcome_or_one_error(seed):
  check_random_texts(seed, 1000)


def reviewed_matches() -> set[frozenset[str]]:
  """Returns pairs that match though the battery does not equate them, reviewed by hand."""
  lines = MATCHES.read_text().splitlines()
  return {
    frozenset(line.split(' || '))
    for line in lines
    if line and not line.startswith('#')
  }


class EquivalenceClasses:
  """Union-find of answers over the pairs of the battery that match."""

  def __init__(self) -> None:
    self._parents: dict[str, str] = {}
    self.categories: dict[str, list[str]] = {}
    for pair in math_battery.pairs():
      answer = extract(pair.response)
      if pair.category in ADVERSARIAL or answer is None:
        continue
      reference = reference_answer(pair.reference)
      members = self.categories.setdefault(pair.category, [])
      members += [text for text in (answer, reference) if text not in members]
      if pair.score:
        self._parents[self.find(answer)] = self.find(reference)

  def find(self, answer: str) -> str:
    """Returns the representative of an answer's class."""
    while self._parents.setdefault(answer, answer) != answer:
      answer = self._parents[answer]
    return answer

  def unequal_pairs(self, *, across: bool) -> Iterator[tuple[str, str]]:
    """Yields pairs that the battery does not equate: of each category, and across them."""
    reviewed = reviewed_matches()
    groups = list(self.categories.values())
    answers = sorted({text for members in groups for text in members})
    pairs = itertools.chain(
      *(itertools.combinations(members, 2) for members in groups),
      # Whether a pair is chosen does not depend on the others.
      (
        pair
        for pair in itertools.combinations(answers if across else (), 2)
        if not zlib.crc32(repr(pair).encode()) % PAIRS_PER_SAMPLE
      ),
    )
    for first, second in pairs:
      is_equal = self.find(first) == self.find(second)
      if not is_equal and frozenset((first, second)) not in reviewed:
        yield first, second


@pytest.mark.slow
def test_only_answers_that_the_battery_equates_match():
  pairs = list(EquivalenceClasses().unequal_pairs(across=True))
  assert len(pairs) > 50_000
  matches = []
  for one, other in pairs:
    outcome = grading._quick_outcome(one, other) or compare(one, other)
    if outcome.score:
      matches.append(f'{one}  ~~  {other}')
  assert not matches, '\n'.join(matches)


def test_a_sample_of_answers_matches_only_where_the_battery_equates_them():
  pairs = list(EquivalenceClasses().unequal_pairs(across=False))
  for one, other in random.Random(1).sample(pairs, 1500):
    outcome = grading._quick_outcome(one, other) or compare(one, other)
    assert outcome.score == 0.0, (one, other)
