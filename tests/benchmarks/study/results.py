# SPDX-License-Identifier: Apache-2.0
"""Sections of the study's tasks: tables and figures of the finished runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from covrl.evaluation.intervals import Estimate, student_mean
from covrl.report import formats
from covrl.report.pages.sections import PageSection

from . import tabular
from .driver import (
  ADVISED,
  SEEDS,
  Lines,
  Run,
  Study,
  evaluations,
  primary_metric,
  tuning_runs,
  updates,
)
from .figures import RunsByVariant, curves
from .tasks import DEPTHS, TASKS, StudyTask
from .variants import VARIANTS, Variant

BASELINE = 'grpo'


@dataclasses.dataclass(frozen=True)
class NumberFormat:
  """The format of a number in tables.

  Attributes:
    title: title of its column.
    digits: digits after the point.
    scale: factor of the number.
    has_interval: whether the mean is shown with its interval.
  """

  title: str
  digits: int = 1
  scale: float = 1.0
  has_interval: bool = True


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of a task's table.

  Attributes:
    number_format: title of the column and format of its numbers.
    value: metrics of a run -> the number.
  """

  number_format: NumberFormat
  value: Callable[[Lines], float]


def at_end_column(
  name: str, digits: int = 1, scale: float = 100.0, title: str = ''
) -> Column:
  """A column of the last evaluation."""
  return Column(
    NumberFormat(title or name, digits, scale),
    lambda lines: at_end(lines, name),
  )


def at_end(lines: Lines, name: str) -> float:
  """A metric of the last evaluation."""
  return float(evaluations(lines)[-1][name])


def entropy_at_end(lines: Lines) -> float:
  """Mean entropy of the last five iterations' updates, in nats per token."""
  update_lines = updates(lines)
  first = update_lines[-1]['iteration'] - 4
  return float(
    np.mean([x['entropy'] for x in update_lines if x['iteration'] >= first])
  )


def at_rule_change(name: str) -> Callable[[Lines], float]:
  """Makes a function of a run: a metric at the change of the rule.

  It is that of the evaluation there, or else of the update before.
  """

  def value(lines: Lines) -> float:
    change = next(x for x in evaluations(lines) if x['rule'] == 1)
    if name in change:
      return change[name]
    before = [
      x for x in updates(lines) if x['iteration'] == change['iteration'] - 1
    ]
    return before[-1][name]

  return value


ENTROPY = Column(NumberFormat('entropy at the end, nats', 3), entropy_at_end)
PERCENT = NumberFormat('%', 1, 100.0)
COLUMNS: Mapping[str, Sequence[Column]] = {
  'changed_rule': (
    Column(
      NumberFormat('reached, % of seeds', 0, 100.0, has_interval=False),
      lambda lines: at_end(lines, 'new_rule') >= 0.5,
    ),
    Column(
      NumberFormat('old rule at the change, %', 1, 100.0),
      at_rule_change('old_rule'),
    ),
    Column(
      NumberFormat('new rule at the change, %', 3, 100.0),
      at_rule_change('new_rule'),
    ),
    Column(
      NumberFormat('entropy at the change, nats', 3), at_rule_change('entropy')
    ),
    at_end_column('new_rule', title='new rule at the end, %'),
  ),
  'lock': (
    *(
      at_end_column(f'left_distractor/{d}', 0, title=f'depth {d}, %')
      for d in DEPTHS
    ),
    ENTROPY,
  ),
  'many_solutions': (
    at_end_column('accuracy', title='pass@1, %'),
    at_end_column('pass64', title='pass@64, %'),
    ENTROPY,
  ),
  'out_of_distribution': (
    at_end_column('usual', title='usual goals, %'),
    at_end_column('unusual_pass64', title='other goals, pass@64, %'),
    at_end_column('distinct', 2, 1.0, title='distinct solutions'),
    ENTROPY,
  ),
}
PRIMARY: Mapping[str, NumberFormat] = {
  'changed_rule': NumberFormat('updates to ½', 0),
  'lock': NumberFormat('left the distractor, %', 1, 100.0),
  'many_solutions': NumberFormat('distinct solutions', 2),
  'out_of_distribution': NumberFormat('other goals, pass@1, %', 1, 100.0),
}
"""Format of each task's primary metric."""


def finished_runs(
  study: Study, task_name: str, seeds: Sequence[int] = SEEDS
) -> RunsByVariant:
  """Metrics of the finished runs of a task, by variant and seed."""
  runs_by_variant: RunsByVariant = {}
  variants = {variant.name: variant for variant in study.variants(task_name)}
  for variant_name in (*VARIANTS, ADVISED):
    runs_by_variant[variant_name] = {}
    if variant_name in variants:
      for seed in seeds:
        lines = study.finished_lines(
          Run(task=task_name, variant=variants[variant_name], seed=seed)
        )
        if lines:
          runs_by_variant[variant_name][seed] = lines
  return runs_by_variant


def advice_text(study: Study, task_name: str) -> str:
  """The recommendation of `covrl advise` for a task, and which variant that is."""
  advised = study.advised(task_name)
  if advised is None:
    return ''
  equal_variants = [
    variant.name
    for variant in study.variants(task_name)
    if variant.options == advised.options
  ]
  variant_title = (
    'the variant `advised`'
    if ADVISED in equal_variants
    else f'the variant `{equal_variants[0]}`'
  )
  return (
    f'After a GRPO run with a tuning seed, `covrl advise` recommends'
    f' {advised_title(advised)}: {variant_title}.'
  )


def advised_title(variant: Variant) -> str:
  """An advised variant in words."""
  options = variant.options
  if options.target >= 0:
    return f'a bonus controlled to {options.target:g} nats'
  if options.penalty > 0:
    annealed = ', annealed' if options.annealed else ''
    return (
      f'KL-Cov on {100 * options.fraction:.2g} % of the tokens with coefficient'
      f' {options.penalty:g}{annealed}'
    )
  return 'no control'


def interval(values: Sequence[float]) -> Estimate | None:
  """Mean over seeds with its interval; `None` without values."""
  return student_mean(np.array(values, float)) if values else None


def estimate_text(
  estimate: Estimate | None,
  number_format: NumberFormat,
  *,
  signed: bool = False,
) -> str:
  """Mean ± half width of the interval."""
  if estimate is None:
    return '–'
  format_number = formats.signed if signed else formats.fixed
  number = format_number(
    number_format.scale * estimate.value, number_format.digits
  )
  if not number_format.has_interval:
    return number
  half_width = formats.half_width(
    estimate, scale=number_format.scale, digits=number_format.digits
  )
  return f'{number}{half_width}'


def differences(
  task: StudyTask,
  runs_by_variant: RunsByVariant,
  variant: str,
  baseline: str = BASELINE,
) -> Estimate | None:
  """Difference of the primary metric to the baseline, paired by seed."""
  shared_seeds = sorted(
    set(runs_by_variant[variant]) & set(runs_by_variant[baseline])
  )
  return interval(
    [
      primary_metric(task, runs_by_variant[variant][s])
      - primary_metric(task, runs_by_variant[baseline][s])
      for s in shared_seeds
    ]
  )


def verdict(task: StudyTask, difference: Estimate | None) -> str:
  """Whether a variant wins, by the protocol."""
  if difference is None:
    return ''
  sign = difference.sign if task.higher_is_better else -difference.sign
  return {1: 'wins', 0: '', -1: 'loses'}[sign]


def claim_verdict(outcomes: Sequence[bool]) -> str:
  """Verdict on a claim by the tasks on which it holds."""
  if not outcomes:
    return 'open'
  return (
    f'holds in {sum(outcomes)} of {len(outcomes)} tasks'
    if any(outcomes)
    else 'fails'
  )


def task_section(study: Study, task_name: str) -> PageSection:
  """Table and curves of one task; every variant has a row."""
  task, runs_by_variant = study.task(task_name), finished_runs(study, task_name)
  chosen_values, primary_format = (
    study.chosen_values(task_name),
    PRIMARY[task_name],
  )
  rows = []
  for variant_name in shown_variants(study, task_name):
    runs = runs_by_variant[variant_name]
    difference = (
      None
      if variant_name == BASELINE
      else differences(task, runs_by_variant, variant_name)
    )
    value = (
      f' ({chosen_values[variant_name]:g})'
      if variant_name in chosen_values
      else ''
    )
    rows.append(
      [
        f'`{variant_name}`{value}',
        str(len(runs)),
        estimate_text(
          interval([primary_metric(task, x) for x in runs.values()]),
          primary_format,
        ),
        estimate_text(difference, primary_format, signed=True)
        if difference
        else '',
        verdict(task, difference),
        *(
          estimate_text(
            interval([float(c.value(x)) for x in runs.values()]),
            c.number_format,
          )
          for c in COLUMNS[task_name]
        ),
      ]
    )
  if not any(runs_by_variant.values()):
    texts = [
      tuning_text(study, task_name),
      *(tabular_texts(task) if task_name == 'lock' else ()),
    ]
    return PageSection(title=task.title, texts=texts)
  tabular_lines = tabular_texts(task) if task_name == 'lock' else ()
  return PageSection(
    title=task.title,
    texts=(
      f'Primary metric: {primary_format.title}; '
      f'{"more" if task.higher_is_better else "fewer"} is better. Mean over seeds ±'
      ' half width of the 95 % t interval; Δ is paired by seed with grpo. In'
      ' parentheses the value chosen on other seeds.',
      *filter(None, [advice_text(study, task_name)]),
      *tabular_lines,
    ),
    columns=[
      'variant',
      'seeds',
      primary_format.title,
      'Δ',
      '',
      *(c.number_format.title for c in COLUMNS[task_name]),
    ],
    rows=rows,
    all_figures=curves(task, runs_by_variant),
  )


def shown_variants(study: Study, task_name: str) -> list[str]:
  """Names of a task's rows; `advised` if it differs from all other variants."""
  names = [variant.name for variant in study.variants(task_name)]
  return [*VARIANTS, *([ADVISED] if ADVISED in names else [])]


def tuning_text(study: Study, task_name: str) -> str:
  """Progress of the tuning runs, for a task whose variants have not been run."""
  task, primary_format = study.task(task_name), PRIMARY[task_name]
  runs = [study.finished_lines(run) for run in tuning_runs(task_name)]
  values = [primary_metric(task, lines) for lines in runs if lines]
  if not values:
    return 'Not run yet.'
  best = max(values) if task.higher_is_better else min(values)
  return (
    'The variants have not been run on the seeds of the study. Best of'
    f' {len(values)} tuning runs (of {len(runs)}), {primary_format.title}:'
    f' {formats.fixed(primary_format.scale * best, primary_format.digits)}.'
  )


def tabular_texts(task: StudyTask) -> list[str]:
  """Shares of locks that a table of logits solves with GRPO, by depth."""
  by_step = [
    f'{", ".join(f"{100 * share:.0f}" for share in shares)} % with step size {step:g}'
    for step in tabular.STEP_SIZES
    if (
      shares := [
        tabular.learnt_share(depth, sum(task.phases), step) for depth in DEPTHS
      ]
    )
  ]
  return [
    'Tabular prediction, GRPO with separate logits for each prompt (the network'
    ' shares what it learns): the shares of locks at depths 1 to 4 whose'
    ' distractor is left are'
    f' {"; ".join(by_step)}.'
  ]


def all_sections(study: Study) -> list[PageSection]:
  """Sections of the tasks on which all variants are compared."""
  return [task_section(study, name) for name in TASKS]
