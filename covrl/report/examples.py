# SPDX-License-Identifier: Apache-2.0
"""Greedy responses to the same held-out problems, before and after training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from covrl.report.inputs.run_data import RunData
from covrl.report.inputs.run_json import finite_number, short_text

_MAX_EXAMPLES = 8
_MAX_CHARACTERS = 600


@dataclasses.dataclass(frozen=True)
class Answer:
  """A greedy response.

  Attributes:
    text: the response.
    is_correct: whether it is correct; `None` without a score.
  """

  text: str
  is_correct: bool | None


@dataclasses.dataclass(frozen=True)
class Example:
  """A held-out problem with two responses.

  Attributes:
    prompt: text of the prompt.
    before: response at the first evaluation.
    after: response at the last evaluation.
  """

  prompt: str
  before: Answer
  after: Answer


@dataclasses.dataclass(frozen=True)
class ExampleTable:
  """Examples, and the iterations of their evaluations.

  Attributes:
    first: iteration of the first evaluation, as text.
    last: iteration of the last evaluation, as text.
    examples: the first held-out problems.
  """

  first: str
  last: str
  examples: Sequence[Example]


def example_table(run: RunData) -> ExampleTable | None:
  """Table of examples; `None` without two evaluations that have responses."""
  if len(run.evals) < 2:
    return None
  first, last = (run.evals.value_at(n, 'iteration') for n in (0, -1))
  before, after = run.examples_at(first), run.examples_at(last)
  examples = [
    Example(
      short_text(prompt, _MAX_CHARACTERS),
      _answer(record),
      _answer(later_record),
    )
    for prompt, record in before.items()
    if (later_record := after.get(prompt)) is not None
  ]
  if not examples or first is None or last is None:
    return None
  return ExampleTable(f'{first:,.0f}', f'{last:,.0f}', examples[:_MAX_EXAMPLES])


def _answer(record: Mapping[str, Any]) -> Answer:
  """The greedy response in a record of results."""
  score = finite_number(record.get('greedy'))
  is_correct = None if score is None else score > 0
  return Answer(short_text(record['response'], _MAX_CHARACTERS), is_correct)
