# SPDX-License-Identifier: Apache-2.0
"""Serves a run or a pretrained model over HTTP, like OpenAI's completions.

Answers POST /v1/completions, GET /v1/models, /metrics (Prometheus) and /health.
Requests are decoded together; a response depends on its own seed only.
Examples:

  covrl serve runs/kl_cov
  covrl serve Qwen/Qwen2.5-0.5B-Instruct --port=8001 --slots=32
  covrl serve models/qwen --host=0.0.0.0 --token_file=token

It listens on this machine alone unless --host is given; on an address that
others can reach, requests need the token as "Authorization: Bearer TOKEN".
"""

from __future__ import annotations

import argparse
import importlib.util

from covrl.cli import jax_settings
from covrl.cli.policies import (
  add_caching,
  add_policy,
  add_trust,
  caching,
  check_numbers,
  is_run,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of `covrl serve`."""
  add_policy(parser)
  parser.add_argument(
    '--host',
    default='127.0.0.1',
    metavar='ADDRESS',
    help='address to listen on (default: %(default)s)',
  )
  parser.add_argument(
    '--port',
    type=int,
    default=8000,
    metavar='N',
    help='port to listen on, 0 for a free one (default: %(default)s)',
  )
  parser.add_argument(
    '--token_file',
    metavar='FILE',
    help='file with the token that requests have to carry',
  )
  parser.add_argument(
    '--name',
    metavar='NAME',
    help='name of the model in requests (default: POLICY)',
  )
  add_cache_sizes(parser)
  add_caching(parser)
  parser.add_argument(
    '--max_waiting',
    type=int,
    default=256,
    metavar='N',
    help='responses that may wait for a slot; more are refused with status 429 '
    '(default: %(default)s)',
  )
  add_trust(parser)


def add_cache_sizes(parser: argparse.ArgumentParser) -> None:
  """Adds the options that determine the size of the caches."""
  parser.add_argument(
    '--slots',
    type=int,
    default=16,
    metavar='N',
    help='responses that are decoded together (default: %(default)s)',
  )
  parser.add_argument(
    '--max_prompt_length',
    type=int,
    metavar='N',
    help="tokens of a prompt, at most (default: the run's; for a model 2048, or "
    'fewer if it has fewer positions)',
  )
  parser.add_argument(
    '--max_length',
    type=int,
    metavar='N',
    help="tokens of a response, at most (default: the run's; for a model 1024, "
    'or fewer if it has fewer positions)',
  )


def run(arguments: argparse.Namespace) -> None:
  """Serves until it is interrupted."""
  for package in ('starlette', 'uvicorn'):
    if importlib.util.find_spec(package) is None:
      raise ValueError(
        f'covrl serve needs {package}, which is not installed: pip install'
        " 'covrl[serve]'"
      )
  jax_settings.prepare_to_run()
  jax_settings.use_compilation_cache()
  from covrl.data.problems import check_unicode
  from covrl.run.progress import Progress
  from covrl.serve import load_model, load_run
  from covrl.serve.server import Address, open_socket, read_token, serve

  address = Address(arguments.host, arguments.port)
  token = read_token(arguments.token_file)
  address.check(token)
  check_numbers(arguments)
  name = arguments.name or arguments.policy
  check_unicode(name, '--name')
  cache = caching(arguments)
  with open_socket(address) as listener:
    with Progress() as progress:
      progress.stage('loading the policy')
      lengths = arguments.max_prompt_length, arguments.max_length
      if is_run(arguments.policy):
        served = load_run(arguments.policy, lengths, trust=arguments.trust)
      else:
        served = load_model(arguments.policy, lengths)
      progress.stage('compiling')
      engine = served.engine(slots=arguments.slots, segment=16, caching=cache)
    serve(
      engine,
      served.tokenizer,
      listener,
      token=token,
      model=name,
      max_waiting=arguments.max_waiting,
    )
