# SPDX-License-Identifier: Apache-2.0
"""Samples responses to a prompt, or a file of prompts, from a run or a model.

Prints one response per line after its log-probability under the policy, the sum
of log p over the response's tokens, in nats: at temperature 1 and of all tokens,
whatever distribution the response is sampled from. Examples:

  covrl sample runs/kl_cov "3 7 2 = 42 :"
  covrl sample Qwen/Qwen2.5-0.5B-Instruct "What is 17 * 23?" --chat
  covrl sample runs/kl_cov --file=prompts.jsonl --output=responses.jsonl

A line of --file is a JSON object with a prompt, and may have options that
replace those of the command: n, max_tokens, temperature, top_p, top_k, min_p,
seed, stop (texts that end a response), stop_token_ids, and an id that is repeated
in the output. An option that is null is that of the command. An interrupted
command leaves the first lines in --output, and the same command with --resume
continues after them. Each has a fingerprint of policy and options; --resume refuses
others. Responses have log-probabilities at temperature 1, and under the
distribution that they were sampled from. The result of an
invalid line is an error.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from covrl.cli import jax_settings, sample_file
from covrl.cli.policies import (
  add_caching,
  add_policy,
  add_template_variables,
  add_trust,
  check_numbers,
  is_run,
  print_prompt_notes,
  prompt_format,
  refuse_unused,
)

if TYPE_CHECKING:
  from covrl.run.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of `covrl sample`."""
  add_policy(parser)
  parser.add_argument(
    'prompt',
    nargs='?',
    metavar='PROMPT',
    help="prompt, in the notation of the run's task",
  )
  parser.add_argument(
    '--file',
    metavar='FILE',
    help='file of prompts instead of PROMPT, a JSON object per line',
  )
  parser.add_argument(
    '--output',
    metavar='FILE',
    help='new file for the responses to --file, a JSON object per line (default: '
    'standard output)',
  )
  parser.add_argument(
    '--resume',
    action='store_true',
    default=None,
    help='continue after the lines that --output already has',
  )
  parser.add_argument(
    '--count',
    type=int,
    default=4,
    metavar='N',
    help='number of responses to a prompt (default: %(default)s)',
  )
  parser.add_argument(
    '--temperature',
    type=float,
    default=1.0,
    help='sampling temperature, 0 for greedy (default: %(default)g)',
  )
  parser.add_argument(
    '--top_p',
    type=float,
    default=1.0,
    metavar='P',
    help='probability mass to sample from (default: %(default)g)',
  )
  parser.add_argument(
    '--top_k',
    type=int,
    default=0,
    metavar='K',
    help='number of tokens to sample from, 0 for all (default: %(default)s)',
  )
  parser.add_argument(
    '--min_p',
    type=float,
    default=0.0,
    metavar='P',
    help="least probability of a token, relative to the likeliest token's, 0 for "
    'all (default: %(default)g)',
  )
  parser.add_argument(
    '--seed', type=int, default=0, help='random seed (default: %(default)s)'
  )
  add_trust(parser)
  parser.add_argument(
    '--chat',
    action='store_true',
    help="format the prompt as a user's message with the chat template of the "
    "model, or of the model that the run began with, after the run's system "
    'message; a note says if responses do not end where the template ends answers',
  )
  add_template_variables(parser)
  parser.add_argument(
    '--max_length',
    type=int,
    metavar='N',
    help="tokens per response (default: the run's; for a model 256, or fewer if "
    'it has fewer positions)',
  )
  parser.add_argument(
    '--max_prompt_length',
    type=int,
    metavar='N',
    help="tokens of a prompt of --file (default: the run's; for a model 2048, or "
    'fewer if it has fewer positions)',
  )
  parser.add_argument(
    '--slots',
    type=int,
    metavar='N',
    help='responses to --file that are decoded together (default: 16)',
  )
  add_caching(parser)


def run(arguments: argparse.Namespace) -> None:
  """Prints the responses."""
  from covrl.config.bounds import SEED
  from covrl.run.progress import Progress

  if (arguments.prompt is None) == (arguments.file is None):
    given = 'neither' if arguments.file is None else 'both'
    raise ValueError(f'either PROMPT or --file must be given, got {given}')
  if arguments.file is None:
    unused = ['output', 'resume', 'max_prompt_length', 'slots']
    unused += ['cache_dtype', 'prefill_chunk']
    refuse_unused(arguments, unused, '--file')
  check_numbers(arguments)
  if not arguments.chat:
    refuse_unused(arguments, ['template_variables'], '--chat')
  jax_settings.prepare_to_run()
  if not SEED.contains(arguments.seed):
    raise ValueError(f'--seed {SEED.requirement}, got {arguments.seed}')
  jax_settings.use_compilation_cache()
  if arguments.file is not None:
    sample_file.run(arguments)
    return
  with Progress() as progress:
    progress.stage('loading the policy')
    if is_run(arguments.policy):
      responses = _sample_run(arguments, progress)
    else:
      responses = _sample_pretrained(arguments, progress)
  for text, logprob in responses:
    print(f'log-probability {logprob:8.3f} nats  {text}')


def _sample_run(
  arguments: argparse.Namespace, progress: Progress
) -> list[tuple[str, float]]:
  """Samples from a run's latest checkpoint."""
  from covrl.train.setup.restore import open_run

  with open_run(arguments.policy, trust=arguments.trust) as opened:
    render = prompt_format(arguments, opened.config)
    tokenizer = opened.task.tokenizer
    print_prompt_notes(arguments, opened.config, tokenizer, progress)
    progress.stage('sampling')
    return opened.sample(
      render(arguments.prompt),
      count=arguments.count,
      temperature=arguments.temperature,
      top_p=arguments.top_p,
      top_k=arguments.top_k,
      min_p=arguments.min_p,
      seed=arguments.seed,
      max_length=arguments.max_length,
    )


def _sample_pretrained(
  arguments: argparse.Namespace, progress: Progress
) -> list[tuple[str, float]]:
  """Samples from a pretrained model, with its parameters on all devices."""
  from covrl import pretrained
  from covrl.config import Config
  from covrl.data import Problem, prompt_ids
  from covrl.parallel import sharding
  from covrl.train.setup.sample import response_limit, sample_responses

  tokenizer = pretrained.load_tokenizer(arguments.policy)
  config = Config(pretrained=arguments.policy)
  prompt = prompt_format(arguments, config)(arguments.prompt)
  print_prompt_notes(arguments, config, tokenizer, progress)
  problem = Problem(prompt=prompt, reference=None, source='prompt')
  mesh = sharding.make_mesh()
  config.rollout.max_prompt_length = max(len(prompt_ids(problem, tokenizer)), 1)
  config.rollout.max_response_length = response_limit(
    arguments.policy, prompt, tokenizer, arguments.max_length
  )
  policy, params = pretrained.load_pretrained(arguments.policy, mesh)
  progress.stage('sampling')
  return sample_responses(
    policy,
    params,
    mesh,
    tokenizer,
    prompt,
    rollout=config.rollout,
    count=arguments.count,
    temperature=arguments.temperature,
    top_p=arguments.top_p,
    top_k=arguments.top_k,
    min_p=arguments.min_p,
    seed=arguments.seed,
  )
