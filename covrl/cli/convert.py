# SPDX-License-Identifier: Apache-2.0
"""Exports the weights of a run, or converts a pretrained model.

Writes a directory that transformers loads, with adapters merged into the
weights; with --adapter the LoRA adapters alone, as PEFT loads them; with
--orbax a copy of a pretrained model that covrl loads faster. Tokenizer and end
tokens are the run's. A warning has the share of the adapters' change that is
rounded away in merged weights of bfloat16; --dtype=float32 keeps it. Examples:

  covrl convert runs/kl_cov models/kl_cov
  covrl convert Qwen/Qwen2.5-0.5B models/qwen --dtype=float32 --orbax
"""

from __future__ import annotations

import argparse

from covrl.cli import jax_settings
from covrl.cli.policies import add_policy, add_trust, is_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of `covrl convert`."""
  add_policy(parser)
  parser.add_argument(
    'target', metavar='TARGET', help='a new directory for the result'
  )
  parser.add_argument(
    '--dtype',
    choices=('float32', 'bfloat16'),
    help="type of the weights (default: the source's)",
  )
  add_trust(parser)
  output_format = parser.add_mutually_exclusive_group()
  output_format.set_defaults(output_format='model')
  output_format.add_argument(
    '--adapter',
    dest='output_format',
    action='store_const',
    const='adapter',
    help='write the LoRA adapters alone',
  )
  output_format.add_argument(
    '--orbax',
    dest='output_format',
    action='store_const',
    const='orbax',
    help='write an Orbax checkpoint, which loads faster',
  )


def run(arguments: argparse.Namespace) -> None:
  """Writes the weights and prints the target directory."""
  from covrl import pretrained
  from covrl.config import ConfigError
  from covrl.run.progress import Progress
  from covrl.train.setup.restore import open_run

  jax_settings.set_xla_flags()
  jax_settings.use_compilation_cache()
  with Progress() as progress:
    progress.stage('loading the weights')
    if is_run(arguments.policy):
      with open_run(arguments.policy, trust=arguments.trust) as opened:
        source = opened.config.pretrained
        is_merged = arguments.output_format != 'adapter'
        if source and not is_merged and opened.config.warm_start.steps:
          raise ConfigError(
            'warm_start.steps of the run must be 0 with --adapter, got'
            f' {opened.config.warm_start.steps}: its adapters belong to the'
            f' weights after the warm start, and not to {source}; write all weights,'
            ' without --adapter'
          )
        policy = pretrained.as_pretrained(
          opened.policy,
          source,
          opened.task.tokenizer,
          arguments.output_format,
        )
        params = opened.params
        if source and is_merged and not opened.config.warm_start.steps:
          policy, params = pretrained.with_source_dtype(policy, params, source)
    else:
      policy, params = pretrained.load_pretrained(
        arguments.policy, dtype=arguments.dtype
      )
    progress.stage('writing the weights')
    pretrained.convert(
      policy,
      params,
      arguments.target,
      output_format=arguments.output_format,
      dtype=arguments.dtype,
      on_progress=progress.counter('weight files'),
      warn=progress.warn,
    )
  print(arguments.target)
