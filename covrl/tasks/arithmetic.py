# SPDX-License-Identifier: Apache-2.0
"""Arithmetic for a pretrained language model."""

from __future__ import annotations

import functools

from covrl.config import Config, ConfigError
from covrl.data import (
  ArithmeticSource,
  FormattedSource,
  SolvedArithmeticSource,
  held_out_arithmetic,
)
from covrl.pretrained import load_tokenizer
from covrl.rewards import math_reward
from covrl.rewards.math.extraction import extract
from covrl.tasks.task import Task
from covrl.tasks.text import prompt_format

# Rule of `math_reward`: the last number of a response is its answer.
_RULE = 'number'


def arithmetic_task(config: Config) -> Task:
  """Returns a task of sums and differences, with a pretrained tokenizer.

  The last number of a response is its answer. Prompts are the expressions in the
  prompt template or the model's chat template.

  Args:
    config: `arithmetic` bounds the problems, `data` has the format of the
      prompts, and `pretrained` names the model.

  Raises:
    ConfigError: `pretrained` is empty.
    ValueError: the model is absent, or the bounds allow too few problems.
  """
  if not config.pretrained:
    raise ConfigError(
      'pretrained must name a model for the task arithmetic, which uses its'
      " tokenizer, got ''"
    )
  tokenizer = load_tokenizer(config.pretrained)
  format_prompt = prompt_format(config)
  problems = config.arithmetic
  return Task(
    tokenizer=tokenizer,
    train=FormattedSource(ArithmeticSource(problems), format_prompt),
    solved=FormattedSource(SolvedArithmeticSource(problems), format_prompt),
    held_out=tuple(map(format_prompt, held_out_arithmetic(problems))),
    rewards=[math_reward(rule=_RULE, name='arithmetic')],
    answer_extractor=lambda problem: functools.partial(extract, rule=_RULE),
    reference_response=lambda problem: str(problem.reference),
  )
