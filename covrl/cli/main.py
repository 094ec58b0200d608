# SPDX-License-Identifier: Apache-2.0
"""The command line: `covrl plan, compile, train, evaluate, sample, …`.

Bad input ends with one sentence on standard error and exit status 2; see
`covrl.exit_codes` for the others.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

from covrl.cli.arguments import make_parser
from covrl.exit_codes import Exit
from covrl.parallel import xla_flags

if TYPE_CHECKING:
  from covrl.evaluation.results import Evaluation
  from covrl.train.restore import SavedRun

# What bad input raises.
_SENTENCES = (ValueError, RuntimeError, FileNotFoundError)


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command; the console script's entry point."""
  parser = make_parser()
  arguments, overrides = parser.parse_known_args(argv)
  if overrides and arguments.command not in ('plan', 'train', 'compile'):
    parser.error(f'unknown argument {overrides[0]!r}')
  try:
    if arguments.command != 'report':
      _prepare(arguments.command)
    if arguments.command not in ('report', 'compile', 'train'):
      _keep_compilations()
    match arguments.command:
      case 'train':
        _train(arguments, _joined(overrides), argv)
      case 'plan':
        _plan(arguments, _joined(overrides))
      case 'evaluate':
        _evaluate(arguments)
      case 'sample':
        _sample(arguments)
      case 'compile':
        _compile(arguments, _joined(overrides))
      case 'convert':
        _convert(arguments)
      case 'theory':
        _theory(arguments)
      case _:
        _report(arguments)
  except _SENTENCES as error:
    if not _is_ours(error):
      raise
    print(f'covrl: {error}', file=sys.stderr)
    raise SystemExit(2) from None


def _prepare(command: str) -> None:
  """Flags for the compiler of what is attached, or is compiled for.

  A machine without a TPU is spared what libtpu has to say about that: it may be
  installed there to compile for TPUs ahead of time.
  """
  attached = xla_flags.attached()
  xla_flags.apply('tpu' if command == 'compile' else attached)
  if attached == 'tpu' and command != 'compile':
    return
  for name, value in (
    ('TPU_SKIP_MDS_QUERY', '1'),
    ('TPU_WORKER_HOSTNAMES', 'localhost'),
    ('TPU_ACCELERATOR_TYPE', 'v5p-8'),
  ):
    os.environ.setdefault(name, value)


def _keep_compilations() -> None:
  """Programs compiled once are read from disk the next time.

  Not those of several CPU devices. When XLA reads one back, collectives in
  different loops have lost their order, also with the flags of `covrl.parallel.xla_flags`.
  """
  import jax

  if xla_flags.attached() == 'cpu' and jax.device_count() > 1:
    jax.config.update('jax_enable_compilation_cache', False)
  elif 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    kept = pathlib.Path.home() / '.cache' / 'covrl' / 'xla'
    jax.config.update('jax_compilation_cache_dir', str(kept))


def _train(
  arguments: argparse.Namespace,
  overrides: Sequence[str],
  argv: Sequence[str] | None,
) -> None:
  from covrl import config
  from covrl.parallel import distributed, supervisor
  from covrl.train import Stopped, Watch, train

  recipe = config.load(arguments.config, overrides)
  several = arguments.coordinator or distributed.in_cluster()
  if several and not supervisor.is_supervised():
    own = sys.argv[1:] if argv is None else argv
    raise SystemExit(
      supervisor.supervise([sys.executable, '-m', 'covrl.cli', *own])
    )
  if several:
    supervisor.die_with_parent()
  distributed.join(
    arguments.coordinator,
    arguments.num_processes,
    arguments.process_id,
    heartbeat=arguments.heartbeat,
  )
  _keep_compilations()
  status, orderly = 0, True
  try:
    train(
      recipe,
      arguments.workdir,
      Watch(
        stall_after=arguments.stall_after,
        profile_steps=arguments.profile_steps,
      ),
    )
  except Stopped:
    status = int(Exit.RESTART)
  except Exception as error:
    if distributed.count() == 1:
      raise
    status, orderly = _told(error), False
  if distributed.count() > 1:
    distributed.leave(status, orderly=orderly)
  if status:
    raise SystemExit(status)


def _told(error: Exception) -> int:
  """Says what ended one process of several; its exit status."""
  from covrl.parallel import distributed, supervisor

  if distributed.is_loss(error):
    reason = ' '.join(str(error).split())[:200]
    print(supervisor.lost_line(reason), file=sys.stderr)
    return Exit.PEER_LOST
  if isinstance(error, _SENTENCES) and _is_ours(error):
    print(f'covrl: {error}', file=sys.stderr)
    return Exit.REFUSED
  traceback.print_exception(error)
  return Exit.FAILED


def _plan(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
  from covrl import config, storage
  from covrl.compile.plan import plan
  from covrl.parallel import topologies

  recipe = config.load(arguments.config, overrides)
  topology = topologies.find(arguments.topology) if arguments.topology else None
  compiled = None
  if arguments.compiled:
    compiled = storage.path_of(arguments.compiled)
    if topology is None:
      raise ValueError('--compiled needs --topology, got none')
  for line in plan(recipe, topology, arguments.num_slices, compiled):
    print(line)


def _evaluate(arguments: argparse.Namespace) -> None:
  from covrl.evaluation.results import write_results

  output = arguments.output
  if output is None and _is_run(arguments.workdir):
    output = arguments.workdir
  with _measured(arguments) as run:
    evaluation = run.evaluate(
      samples=arguments.samples,
      temperature=arguments.temperature,
      problems=arguments.problems,
    )
    about = {
      'policy': arguments.workdir,
      'iteration': run.iteration,
      'seed': run.config.seed,
    }
  _print_figures(evaluation)
  if arguments.suite and output is not None:
    print(write_results(evaluation, output, about))


def _measured(
  arguments: argparse.Namespace,
) -> contextlib.AbstractContextManager[SavedRun]:
  """What is measured: a run, or a pretrained model with a recipe or without."""
  from covrl.train.restore import (
    Sets,
    open_model,
    open_pretrained,
    open_run,
  )

  sets = None
  if arguments.suite:
    sets = Sets(arguments.suite, arguments.suite_directory)
  if arguments.config:
    return open_pretrained(arguments.workdir, arguments.config, sets)
  if sets is None or _is_run(arguments.workdir):
    return open_run(arguments.workdir, sets)
  return open_model(
    arguments.workdir,
    sets,
    lengths=(arguments.max_prompt_length, arguments.max_length),
    prompts_at_once=arguments.batch,
  )


def _print_figures(evaluation: Evaluation) -> None:
  """One figure a line, with its 95 % interval over problems."""
  estimates = evaluation.estimates()
  width = max(map(len, estimates))
  for name, estimate in estimates.items():
    interval = f'[{estimate.low:.4f}, {estimate.high:.4f}]'
    print(f'{name:{width}} {estimate.value:.4f} {interval}')
  count = sum(len(result.greedy) for result in evaluation.results)
  print(f'{"problems":{width}} {count}')
  print(f'{"entropy":{width}} {evaluation.entropy:.4f} nats')


def _sample(arguments: argparse.Namespace) -> None:
  from covrl.train.restore import open_run

  if not _is_run(arguments.workdir):
    responses = _sample_pretrained(arguments)
  else:
    with open_run(arguments.workdir) as run:
      responses = run.sample(
        arguments.prompt,
        count=arguments.count,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        seed=arguments.seed,
      )
  for text, logprob in responses:
    print(f'{logprob:8.3f} nats  {text}')


def _sample_pretrained(
  arguments: argparse.Namespace,
) -> list[tuple[str, float]]:
  """Responses of a pretrained model, over all devices."""
  from covrl import pretrained
  from covrl.data import begin_of
  from covrl.parallel import sharding
  from covrl.rollout import Sampling, SamplingEngine
  from covrl.train.restore import ask

  tokenizer = pretrained.load_tokenizer(arguments.workdir)
  prompt = arguments.prompt
  if arguments.chat:
    template = pretrained.load_chat_template(arguments.workdir)
    prompt = template.render([{'role': 'user', 'content': prompt}])
    prompt = prompt.removeprefix(begin_of(template, tokenizer))
  mesh = sharding.make_mesh()
  policy, params = pretrained.load_pretrained(arguments.workdir, mesh)
  engine = SamplingEngine(
    policy,
    mesh,
    end_ids=tokenizer.end_ids,
    pad_id=tokenizer.pad_id,
    max_response_length=arguments.max_length,
  )
  return ask(
    engine,
    params,
    tokenizer,
    prompt,
    max_prompt_length=max(len(tokenizer.encode(prompt)) + 1, 1),
    count=arguments.count,
    sampling=Sampling.make(
      arguments.temperature, arguments.top_p, arguments.top_k
    ),
    seed=arguments.seed,
  )


def _is_run(directory: str) -> bool:
  """Whether a directory is a run's, and not a pretrained model or its name."""
  from covrl import storage

  path = storage.path_of(directory)
  if (path / 'recipe').is_dir():
    return True
  if path.exists():
    described = ('config.json', 'adapter_config.json')
    return not any((path / name).is_file() for name in described)
  return re.fullmatch(r'[\w.-]+/[\w.-]+', directory) is None


def _compile(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
  import jax

  from covrl import config
  from covrl.compile import NAMES, compile_recipe
  from covrl.parallel import topologies

  # Whatever is attached is not what is compiled for.
  jax.config.update('jax_platforms', 'cpu')
  topology = topologies.find(arguments.topology)
  programs = arguments.programs
  report = compile_recipe(
    config.load(arguments.config, overrides),
    topology,
    num_slices=arguments.num_slices,
    names=tuple(programs.split(',')) if programs else NAMES,
    note=lambda name: print(f'compiling {name}', file=sys.stderr),
  )
  if arguments.json:
    print(json.dumps(report.as_json()))
  else:
    print('\n'.join(report.lines()))


def _convert(arguments: argparse.Namespace) -> None:
  from covrl import pretrained
  from covrl.train.restore import open_run

  if _is_run(arguments.source):
    with open_run(arguments.source) as run:
      policy = pretrained.with_files(
        run.policy, run.config.pretrained, run.task.tokenizer
      )
      params = run.params
  else:
    policy, params = pretrained.load_pretrained(
      arguments.source, dtype=arguments.dtype
    )
  pretrained.convert(
    policy, params, arguments.target, form=arguments.form, dtype=arguments.dtype
  )
  print(arguments.target)


def _report(arguments: argparse.Namespace) -> None:
  from covrl.report import write_comparison, write_report

  if len(arguments.workdirs) == 1:
    print(write_report(arguments.workdirs[0]))
  else:
    print(write_comparison(arguments.workdirs, arguments.output))


def _theory(arguments: argparse.Namespace) -> None:
  from covrl.report.lab import write_lab_page
  from covrl.theory import command

  run = command.run(name=arguments.claim, quick=arguments.quick)
  if arguments.workdir is not None:
    print(write_lab_page(arguments.workdir, run))
  if not run.agrees:
    raise SystemExit(1)


def _joined(overrides: Sequence[str]) -> list[str]:
  """`--config.a 1` as `--config.a=1`; anything else is refused.

  >>> _joined(['--config.seed', '1', '--config.logging.tensorboard'])
  ['--config.seed=1', '--config.logging.tensorboard']
  """
  joined: list[str] = []
  for argument in overrides:
    if argument.startswith('--config.'):
      joined.append(argument)
    elif joined and '=' not in joined[-1] and not argument.startswith('--'):
      joined[-1] = f'{joined[-1]}={argument}'
    else:
      raise ValueError(
        f'overrides must look like --config.FIELD=VALUE, got {argument!r}'
      )
  return joined


def _is_ours(error: BaseException) -> bool:
  """Whether covrl raised it on purpose; others' errors keep their traceback."""
  if os.environ.get('COVRL_TRACEBACK'):
    return False
  here = pathlib.Path(__file__).parents[1]
  frames = traceback.extract_tb(error.__traceback__)
  return bool(frames) and here in pathlib.Path(frames[-1].filename).parents


if __name__ == '__main__':
  main()
