# SPDX-License-Identifier: Apache-2.0
"""What may stand on the command line, and what `--help` says of it."""

from __future__ import annotations

import argparse

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


def make_parser() -> argparse.ArgumentParser:
  """The parser of all commands; fields of a config are left over by it."""
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
