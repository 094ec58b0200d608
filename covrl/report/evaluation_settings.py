# SPDX-License-Identifier: Apache-2.0
"""Notes on results of evaluation sets that are not of one policy and setting.

`covrl evaluate` adds the results of a set to those of earlier commands, which may
have had an earlier checkpoint, another temperature or another policy. So may a run's
own evaluations of the set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from covrl.evaluation.result_files import HELD_OUT
from covrl.report.formats import join_words
from covrl.report.inputs.run_data import RunData
from covrl.report.inputs.run_json import finite_number, short_text

# A run's own problems, whose set has no name, in a sentence.
_OWN = 'held-out problems'

_TEMPERATURE, _LENGTH_LIMIT = 'temperature', 'max_response_length'
# The beginning of a note on different values of a setting.
_SETTINGS = {
  _TEMPERATURE: 'The samples of {} have different temperatures',
  _LENGTH_LIMIT: 'The responses to {} have different limits of their length in tokens',
}


def setting_notes(
  configurations: Sequence[tuple[str, Sequence[RunData]]], sets: Sequence[str]
) -> list[str]:
  """Returns sentences about results of some evaluation sets.

  They name results of a checkpoint before the run's last iteration, different
  temperatures, length limits and prompts of one set, and results of several policies
  in one directory.

  Args:
    configurations: name and runs of each.
    sets: names of the sets; that of a run's own problems is empty.
  """
  settings = [
    (run, {name: _settings_of(run, name) for name in sets})
    for _, runs in configurations
    for run in runs
  ]
  notes = [
    note
    for run, entries in settings
    for note in (
      *_early_checkpoint_notes(run, entries),
      *_policy_notes(run, entries),
    )
  ]
  for name in sets:
    for field, what in _SETTINGS.items():
      notes += _difference_notes(settings, name, field, what)
    notes += _prompt_notes([run for run, _ in settings], name)
  return notes


def _settings_of(run: RunData, name: str) -> Mapping[str, Any]:
  """Entry of a set in the summary of a run's evaluations; empty without one.

  Results on its own problems that the run itself has saved have its settings. The
  temperature of samples is that of the results, where they have it. A run has one
  length limit, for all of its evaluations.
  """
  limit = run.config_value(f'rollout.{_LENGTH_LIMIT}')
  entry = {_LENGTH_LIMIT: limit, **_summarized_settings(run, name)}
  temperatures = {
    record['temperature']
    for (set_name, _), records in run.latest_results.items()
    if set_name == name
    for record in records
  } - {None}
  if not temperatures:
    return entry
  # The results of a set are of one file, and so of one temperature.
  return {**entry, 'samples': 1, 'temperature': min(temperatures)}


def _summarized_settings(run: RunData, name: str) -> Mapping[str, Any]:
  """Settings of a set, from the run's configuration or its summary."""
  if name not in run.sets_of_command:
    # The temperature of suites is in their results.
    fields = () if name else ('samples', 'temperature')
    return {field: run.config_value(f'evaluate.{field}') for field in fields}
  entry = run.evaluation_summary.get(name or HELD_OUT)
  return entry if isinstance(entry, Mapping) else {}


def _early_checkpoint_notes(
  run: RunData, entries: Mapping[str, Mapping[str, Any]]
) -> list[str]:
  """Notes about results of checkpoints before the run's last iteration."""
  finished = run.finished_iterations
  sets_by_iteration: dict[int, list[str]] = {}
  for name, entry in entries.items():
    iteration = finite_number(entry.get('iteration'))
    if iteration is not None and iteration < finished:
      sets_by_iteration.setdefault(int(iteration), []).append(name or _OWN)
  return [
    f'{run.path.name}: the results of {join_words(names)} are of iteration'
    f' {iteration:,}, and the run has trained to iteration {finished:,} since.'
    for iteration, names in sorted(sets_by_iteration.items())
  ]


def _policy_notes(
  run: RunData, entries: Mapping[str, Mapping[str, Any]]
) -> list[str]:
  """A note if the results of a directory are of several policies."""
  sets_by_policy: dict[str, list[str]] = {}
  for name, entry in entries.items():
    policy = entry.get('policy')
    if isinstance(policy, str):
      # One policy may be named by several paths.
      policy_name = policy.rstrip('/').rpartition('/')[2]
      names = sets_by_policy.setdefault(short_text(policy_name, 80), [])
      names.append(name or _OWN)
  if len(sets_by_policy) < 2:
    return []
  parts = [
    f'{name} ({join_words(sets)})' for name, sets in sets_by_policy.items()
  ]
  return [
    f'{run.path.name}: the results are of several policies: {join_words(parts)}.'
  ]


def _difference_notes(
  settings: Sequence[tuple[RunData, Mapping[str, Mapping[str, Any]]]],
  name: str,
  field: str,
  what: str,
) -> Iterator[str]:
  """A note if runs have different values of a setting of a set.

  Args:
    settings: runs, and the settings of each set.
    name: name of the set.
    field: the setting.
    what: the beginning of the note, with `{}` in place of the set.
  """
  runs_by_value: dict[float, list[str]] = {}
  for run, entries in settings:
    value = finite_number(entries[name].get(field))
    is_used = field != _TEMPERATURE or entries[name].get('samples')
    if value is not None and is_used and _has_results(run, name):
      runs_by_value.setdefault(value, []).append(run.path.name)
  if len(runs_by_value) > 1:
    parts = [
      f'{value:g} ({join_words(names)})'
      for value, names in runs_by_value.items()
    ]
    yield f'{what.format(name or _OWN)}: {join_words(parts)}.'


def _has_results(run: RunData, name: str) -> bool:
  """Whether a run has results of a set."""
  return any(set_name == name for set_name, _ in run.latest_results)


def _prompt_notes(runs: Sequence[RunData], name: str) -> Iterator[str]:
  """A note if runs have different prompts for the same problems of a set."""
  first_prompts: dict[str, tuple[int, str]] = {}
  for run in runs:
    prompts = {
      key: records[0]['prompt']
      for (set_name, key), records in run.latest_results.items()
      if set_name == name and records[0]['prompt'] is not None
    }
    differing = [
      first_prompts[key][1]
      for key, prompt in prompts.items()
      if first_prompts.setdefault(key, (prompt, run.path.name))[0] != prompt
    ]
    if differing:
      yield (
        f'The prompts of {len(differing):,} of {len(prompts):,} problems of'
        f' {name or _OWN} differ between {differing[0]} and {run.path.name}.'
      )
