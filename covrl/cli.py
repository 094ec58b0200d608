# SPDX-License-Identifier: Apache-2.0
"""The command line: `covrl plan, compile, train, evaluate, sample, …`.

Bad input ends with one sentence on standard error and exit status 2; see
`covrl.exits` for the others.
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

from covrl import flags

if TYPE_CHECKING:
  from covrl.train.results import Evaluation
  from covrl.train.saved import SavedRun

from covrl.exits import Exit

_DESCRIPTION = """\
Entropy control for reinforcement learning of language models.

  covrl train --config=configs/countdown_kl_cov.py --workdir=runs/kl_cov
  covrl report runs/*
"""

_TRAIN = """\
Trains a policy: warm start, then iterations of rollout and updates.

Every field of the config can be overridden by its name, for example
  --config.seed=1 --config.train.iterations=100 --config.entropy.coefficient=0.5
An existing run directory is resumed; a finished run says so and exits.
"""

_PLAN = """\
Says what a run would be: sizes, three prompts and what their reference answers
earn, memory, and an estimate of the time. It takes seconds and no hardware:
  covrl plan --config=configs/countdown_kl_cov.py --topology=v5p-64
"""

_EVALUATE = """\
Measures a policy: greedy, mean@k, pass@k and maj@k, each with its 95 % interval
over problems; on a run's held-out problems, or on evaluation sets, for example
  covrl evaluate runs/kl_cov
  covrl evaluate runs/qwen --suite=math500,aime24,amc --suite_directory=sets
  covrl evaluate models/qwen --suite=math500 --samples=8 --output=runs/before
Sets are sampled as published unless told otherwise: AIME and AMC 32 times at
temperature 0.6, the others greedily. Results by problem go to evaluation/ in
the output directory; covrl report reads them.
"""

_SAMPLE = """\
Samples responses to a prompt from a run's policy, for example
  covrl sample runs/kl_cov "3 7 2 = 42 :"
"""

_REPORT = """\
Writes a page about a run (report.html in its directory), or one page that
compares several, paired by seed, with intervals.
"""


_CONVERT = """\
Writes the weights of a run, or of a pretrained model, as a directory that
transformers loads, adapters merged; or with --adapter the adapters alone, as
PEFT loads them; or with --orbax a pretrained model as a copy that is read
faster. For example
  covrl convert runs/kl_cov models/kl_cov
  covrl convert Qwen/Qwen2.5-0.5B models/qwen --dtype=float32 --orbax
"""

_COMPILE = """\
Compiles a recipe's programs for TPUs that need not be there, and says what they
take: memory, operations, bytes, collectives, and the least time of each, which
is an estimate. Fields are overridden as in training. For example
  covrl compile --config=configs/countdown_kl_cov.py --topology=v5e:2x4
  covrl compile --config=recipe.py --topology=v5p:4x4x8 --num-slices=2 --json
"""

_THEORY = """\
Checks every claim of the theory and says which hold as printed; exits with 1
if a check disagrees with its recorded verdict. For example
  covrl theory --workdir=runs/theory
  covrl theory --claim=VII.4
"""


# What bad input raises.
_SENTENCES = (ValueError, RuntimeError, FileNotFoundError)


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command; the console script's entry point."""
  parser = _parser()
  arguments, overrides = parser.parse_known_args(argv)
  if overrides and arguments.command not in ('plan', 'train', 'compile'):
    parser.error(f'unknown argument {overrides[0]!r}')
  try:
    if arguments.command != 'report':
      _prepare(arguments.command)
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


def _parser() -> argparse.ArgumentParser:
  raw = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(
    prog='covrl', description=_DESCRIPTION, formatter_class=raw
  )
  commands = parser.add_subparsers(dest='command', required=True)

  plan = commands.add_parser(
    'plan', help='what it would be', description=_PLAN, formatter_class=raw
  )
  plan.add_argument('--config', required=True, help='a Python config file')
  plan.add_argument('--topology', help='TPUs it shall run on, such as v5p-64')
  plan.add_argument('--num-slices', type=int, default=1)
  plan.add_argument('--compiled', help='what covrl compile --json wrote of it')

  train = commands.add_parser(
    'train', help='train a policy', description=_TRAIN, formatter_class=raw
  )
  train.add_argument('--config', required=True, help='a Python config file')
  train.add_argument('--workdir', required=True, help="the run's directory")
  train.add_argument('--coordinator', help='HOST:PORT of process 0 of several')
  train.add_argument('--num_processes', type=int, help='how many there are')
  train.add_argument('--process_id', type=int, help='which one this is')
  train.add_argument(
    '--heartbeat',
    type=int,
    default=100,
    help='seconds after which a silent process counts as lost',
  )
  train.add_argument(
    '--stall_after',
    type=float,
    default=3600.0,
    help='seconds without progress after which the run ends; 0 never',
  )
  train.add_argument(
    '--profile_steps', default='', help='FIRST:LAST, updates to trace'
  )

  evaluate = commands.add_parser(
    'evaluate', help='measure it', description=_EVALUATE, formatter_class=raw
  )
  evaluate.add_argument('workdir', help="a run's or pretrained model's")
  evaluate.add_argument('--config', help='the recipe, for a pretrained model')
  evaluate.add_argument('--samples', type=int, help='k of mean@k and pass@k')
  evaluate.add_argument('--temperature', type=float, help='of the samples')
  evaluate.add_argument('--problems', type=int, help='how many, at most')
  evaluate.add_argument('--suite', help='evaluation sets, by comma')
  evaluate.add_argument('--suite_directory', help='where their files are')
  evaluate.add_argument(
    '--output', help="where results go: a run's own directory unless given"
  )
  evaluate.add_argument(
    '--max_prompt_length', type=int, default=2048, help='without a recipe'
  )
  evaluate.add_argument(
    '--max_length', type=int, default=8192, help='of responses, likewise'
  )
  evaluate.add_argument(
    '--batch', type=int, default=64, help='problems at once, likewise'
  )

  sample = commands.add_parser(
    'sample', help='ask it', description=_SAMPLE, formatter_class=raw
  )
  sample.add_argument('workdir', help="a run's or pretrained model's")
  sample.add_argument('prompt', help="in the task's own notation")
  sample.add_argument('--count', type=int, default=4, help='responses')
  sample.add_argument('--temperature', type=float, default=1.0)
  sample.add_argument('--top_p', type=float, default=1.0)
  sample.add_argument('--top_k', type=int, default=0)
  sample.add_argument('--seed', type=int, default=0)
  sample.add_argument(
    '--chat', action='store_true', help='as a user, by the chat template'
  )
  sample.add_argument(
    '--max_length', type=int, default=256, help='of a pretrained model'
  )

  compiling = commands.add_parser(
    'compile', help='does it fit', description=_COMPILE, formatter_class=raw
  )
  compiling.add_argument('--config', required=True, help='a recipe')
  compiling.add_argument(
    '--topology', required=True, help='such as v5p:4x4x4, or v5p-128'
  )
  compiling.add_argument('--num-slices', type=int, default=1)
  compiling.add_argument(
    '--programs', help='which, comma-separated; all if absent'
  )
  compiling.add_argument(
    '--json', action='store_true', help='one object, for machines'
  )

  convert = commands.add_parser(
    'convert', help='take it along', description=_CONVERT, formatter_class=raw
  )
  convert.add_argument('source', help="a run's or pretrained model's directory")
  convert.add_argument('target', help='a new directory')
  convert.add_argument(
    '--dtype', choices=('float32', 'bfloat16'), help='kept if absent'
  )
  form = convert.add_mutually_exclusive_group()
  form.set_defaults(form='model')
  for name, words in (('adapter', 'adapters alone'), ('orbax', 'a copy')):
    form.add_argument(
      f'--{name}', dest='form', action='store_const', const=name, help=words
    )

  report = commands.add_parser(
    'report', help='look at it', description=_REPORT, formatter_class=raw
  )
  report.add_argument('workdirs', nargs='+', help='run directories')
  report.add_argument(
    '--output',
    default='comparison.html',
    help='the page that compares several runs',
  )

  theory = commands.add_parser(
    'theory', help='check it', description=_THEORY, formatter_class=raw
  )
  theory.add_argument('--workdir', help='where report.html shall be')
  theory.add_argument('--claim', help='the only one to check, such as VII.4')
  theory.add_argument(
    '--quick', action='store_true', help='fewer trials, seeds and steps'
  )
  return parser


def _prepare(command: str) -> None:
  """Flags for the compiler of what is attached, or is compiled for.

  A machine without a TPU is spared what libtpu has to say about that: it may be
  installed there to compile for TPUs ahead of time.
  """
  attached = flags.attached()
  flags.apply('tpu' if command == 'compile' else attached)
  if attached == 'tpu' and command != 'compile':
    return
  for name, value in (
    ('TPU_SKIP_MDS_QUERY', '1'),
    ('TPU_WORKER_HOSTNAMES', 'localhost'),
    ('TPU_ACCELERATOR_TYPE', 'v5p-8'),
  ):
    os.environ.setdefault(name, value)


def _keep_compilations() -> None:
  """Programs compiled once are read from disk the next time."""
  import jax

  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    kept = pathlib.Path.home() / '.cache' / 'covrl' / 'xla'
    jax.config.update('jax_compilation_cache_dir', str(kept))


def _train(
  arguments: argparse.Namespace,
  overrides: Sequence[str],
  argv: Sequence[str] | None,
) -> None:
  from covrl import config, distributed, supervisor
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
  from covrl import distributed, supervisor

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
  from covrl import config, storage, topologies
  from covrl.plan import plan

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
  from covrl.train.results import write_results

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
  from covrl.train.saved import Sets, open_model, open_pretrained, open_run

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
  from covrl.train.saved import open_run

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
  from covrl import pretrained, sharding
  from covrl.data import begin_of
  from covrl.rollout import Sampling, SamplingEngine
  from covrl.train.saved import ask

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

  from covrl import config, topologies
  from covrl.compile import NAMES, compile_recipe

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
  from covrl.train.saved import open_run

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
  here = pathlib.Path(__file__).parent
  frames = traceback.extract_tb(error.__traceback__)
  return bool(frames) and here in pathlib.Path(frames[-1].filename).parents


if __name__ == '__main__':
  main()
