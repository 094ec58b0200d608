# SPDX-License-Identifier: Apache-2.0
"""Evaluates a policy: greedy accuracy, mean@k, pass@k and maj@k.

Each number has a 95 % confidence interval over problems; a single problem has
none. A run is evaluated on its held-out problems, or like a pretrained model on
evaluation suites.
Examples:

  covrl evaluate runs/kl_cov
  covrl evaluate runs/qwen --suite=math500,aime24,amc --suite_directory=suites
  covrl evaluate models/qwen --suite=math500 --samples=8 --output=runs/before

By default AIME and AMC are sampled 32 times at temperature 0.6 and the other
suites greedily, as published. Results per problem are written to evaluation/ in
the run's directory, or in that of --output, where `covrl report` finds them:
held_out.jsonl, a file per suite, and summary.json. Notes and warnings on the
problems are printed on standard error, except those of a run's own problems,
which its training has printed. The suites of --suite are compared with the
training files of a run.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from covrl.cli import jax_settings
from covrl.cli.policies import (
  add_policy,
  add_template_variables,
  add_trust,
  check_numbers,
  is_run,
  refuse_unused,
)

if TYPE_CHECKING:
  from covrl.evaluation.results import Evaluation
  from covrl.train.setup.restore import OpenedRun


_PROMPTS_PER_BATCH = 64  # prompts per batch, by default
_WRITE_TEST = '.writable'  # file that is written and removed as a test


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of `covrl evaluate`."""
  add_policy(parser)
  parser.add_argument(
    '--samples',
    type=int,
    metavar='K',
    help='samples per problem, the k of mean@k and pass@k (default: that of '
    'the recipe or the suite)',
  )
  parser.add_argument(
    '--temperature',
    type=float,
    help='sampling temperature (default: that of the recipe or the suite)',
  )
  parser.add_argument(
    '--problems',
    type=int,
    metavar='N',
    help='problems per suite, at most (default: that of the recipe)',
  )
  parser.add_argument(
    '--suite', metavar='NAMES', help='evaluation suites, separated by commas'
  )
  parser.add_argument(
    '--suite_directory',
    metavar='DIRECTORY',
    help="directory of the suites' files",
  )
  parser.add_argument(
    '--output',
    metavar='DIRECTORY',
    help="directory for the results, not of another run (default: the run's; a "
    "pretrained model's results are only printed)",
  )
  add_trust(parser)
  pretrained = parser.add_argument_group('pretrained models')
  pretrained.add_argument(
    '--config', metavar='RECIPE', help='recipe whose problems are evaluated'
  )
  pretrained.add_argument(
    '--max_prompt_length',
    type=int,
    metavar='N',
    help='tokens per prompt, without a recipe (default: 2048, or fewer if the model '
    'has fewer positions)',
  )
  pretrained.add_argument(
    '--max_length',
    type=int,
    metavar='N',
    help='tokens per response, without a recipe (default: 8192, or fewer if the '
    'model has fewer positions)',
  )
  pretrained.add_argument(
    '--batch',
    type=int,
    metavar='N',
    help='problems per batch, without a recipe (default: 64)',
  )
  add_template_variables(pretrained)


def run(arguments: argparse.Namespace) -> None:
  """Prints the numbers and writes the results."""
  from covrl.evaluation.result_files import write_results
  from covrl.run.progress import Progress

  check_numbers(arguments)
  _refuse_another_run(arguments.policy, arguments.output)
  jax_settings.prepare_to_run()
  jax_settings.use_compilation_cache()
  output = arguments.output
  if output is None and is_run(arguments.policy):
    output = arguments.policy
  with Progress() as progress, contextlib.ExitStack() as on_exit:
    progress.stage('loading the policy')
    with _open(arguments) as opened:
      if output is not None:
        on_exit.enter_context(_lock_results(output))
      # Those of a run's own problems were printed by its training.
      if arguments.suite or not is_run(arguments.policy):
        for text in opened.task.notes:
          progress.note(text)
      progress.stage('evaluating')
      evaluation = opened.evaluate(
        samples=arguments.samples,
        temperature=arguments.temperature,
        problems=arguments.problems,
        on_progress=progress.counter('responses'),
        warn=progress.warn,
      )
      if any(
        result.suite.samples > 1 and not result.suite.temperature
        for result in evaluation.results
      ):
        progress.note(
          'samples at temperature 0 are the greedy response each time, so that'
          ' mean@k and pass@k are greedy accuracy'
        )
      if text := evaluation.grade_warning():
        progress.warn(text)
      policy_fields = {
        'policy': arguments.policy,
        'iteration': opened.iteration,
        'seed': opened.config.seed,
        'max_response_length': opened.config.rollout.max_response_length,
      }
    width = _print_metrics(evaluation)
    print(
      f'{"truncated":{width}} {evaluation.truncated} of'
      f' {evaluation.num_responses} responses, by the limit of'
      f' {opened.config.rollout.max_response_length} tokens'
    )
    result_text = 'not written without --output'
    if output is not None:
      result_text = write_results(evaluation, output, policy_fields)
    print(f'{"results":{width}} {result_text}')


def _refuse_another_run(policy: str, output: str | None) -> None:
  """Refuses to write results into the directory of a run other than the policy.

  Reports would show them as results of that run.

  Raises:
    ValueError: `output` is such a directory.
  """
  if output is None:
    return
  from covrl import storage

  directory, source = storage.as_path(output), storage.as_path(policy)
  is_another = storage.absolute(directory) != storage.absolute(source)
  if not storage.is_bucket(directory) and not storage.is_bucket(source):
    is_another = os.path.realpath(directory) != os.path.realpath(source)
  holds_run = any(
    storage.is_directory(directory / name) for name in ('recipe', 'checkpoints')
  )
  if is_another and holds_run:
    raise ValueError(
      '--output must be a directory without a run, or POLICY itself, got'
      f' {output}, a run other than {policy}; reports would show the results as those'
      f' of {output}'
    )


@contextlib.contextmanager
def _lock_results(output: str) -> Iterator[None]:
  """Reserves the directory of results for this process, before it evaluates.

  Raises:
    ConfigError: another process evaluates into the directory.
    StorageError: nothing can be written to the directory.
  """
  from covrl import storage
  from covrl.run import lock

  folder = storage.as_path(output) / 'evaluation'
  with lock.acquire(folder, option='--output'):
    # A file of an earlier lock may be writable where the directory is not.
    storage.write_atomically(folder / _WRITE_TEST, '')
    (folder / _WRITE_TEST).unlink(missing_ok=True)
    try:
      yield
    finally:
      if not storage.is_bucket(folder):
        (folder / lock.FILE_NAME).unlink(missing_ok=True)


def _open(
  arguments: argparse.Namespace,
) -> contextlib.AbstractContextManager[OpenedRun]:
  """Opens a run, or a pretrained model with or without a recipe."""
  from covrl.train.setup.restore import (
    SuiteChoice,
    open_model,
    open_pretrained,
    open_run,
  )

  suites = None
  if arguments.suite:
    suites = SuiteChoice(arguments.suite, arguments.suite_directory)
  else:
    refuse_unused(arguments, ['suite_directory'], '--suite')
  if is_run(arguments.policy):
    refuse_unused(arguments, ['config'], 'a pretrained model')
  if arguments.config or suites is None or is_run(arguments.policy):
    refuse_unused(
      arguments,
      ['template_variables', 'max_prompt_length', 'max_length', 'batch'],
      'a pretrained model, --suite and no --config',
    )
  if arguments.config:
    return open_pretrained(arguments.policy, arguments.config, suites)
  if suites is None and not is_run(arguments.policy):
    raise ValueError(
      '--suite or --config must be given with a pretrained model, got'
      f' {arguments.policy!r} with neither'
    )
  if suites is None or is_run(arguments.policy):
    return open_run(arguments.policy, suites, trust=arguments.trust)
  return open_model(
    arguments.policy,
    suites,
    lengths=(arguments.max_prompt_length, arguments.max_length),
    prompts_per_batch=_PROMPTS_PER_BATCH
    if arguments.batch is None
    else arguments.batch,
    template_variables=arguments.template_variables,
  )


def _print_metrics(evaluation: Evaluation) -> int:
  """Prints one metric per line, with its 95 % interval over problems.

  Returns:
    The width of the names.
  """
  estimates = evaluation.estimates()
  width = max(map(len, estimates))
  for name, estimate in estimates.items():
    interval = f'({estimate.kind})'
    if estimate.low is not None and estimate.high is not None:
      interval = f'[{estimate.low:.4f}, {estimate.high:.4f}]'
    print(f'{name:{width}} {estimate.value:.4f} {interval}')
  count = sum(len(result.greedy) for result in evaluation.results)
  print(f'{"problems":{width}} {count}')
  entropy = 'not measured, without samples at temperature 1'
  if not math.isnan(evaluation.entropy):
    entropy = f'{evaluation.entropy:.4f} nats per token'
  print(f'{"entropy":{width}} {entropy}')
  return width
