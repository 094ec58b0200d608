# SPDX-License-Identifier: Apache-2.0
"""Cost of the LM head on tokens of the loss only, relative to all positions.

  python tests/benchmarks/gathered_head.py [--rounds=9] [--vocabulary=32000]

Both forms of the update and of a scoring pass are compiled and take turns, with
responses of full and of geometric length. A ratio is of one round, and below 1
the gathered form is faster; medians are printed with the quartiles, for
wall-clock seconds and for CPU seconds, which other load disturbs less. Prompts
have 64 tokens, responses up to 256, 64 on average where they are geometric.
`no moments` is a scoring pass without moments, relative to one of all positions
with them.
"""

from __future__ import annotations

import argparse
import functools
import os
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import jax.numpy as jnp
import numpy as np
import optax
from peers.covrl_peer import model
from peers.worker import Shape

import covrl
from covrl.models import Policy
from covrl.parallel import sharding
from covrl.statistics import token_stats
from covrl.train import StepSettings, forward, make_train_step
from covrl.types import TokenBatch, TokenMoments, TrainState, UpdateMeasurements

SHAPES = {
  1024: Shape(prompts=8, group=8, prompt=64, response=256),
  32_000: Shape(
    prompts=4,
    group=4,
    prompt=64,
    response=256,
    layers=4,
    width=256,
    vocabulary=32_000,
  ),
}
MEAN_LENGTH = 64  # tokens of a response
CLIPPED = functools.partial(covrl.clipped_surrogate, low=0.2, high=0.2)


def main() -> None:
  """Prints a table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--rounds', type=int, default=9)
  parser.add_argument(
    '--vocabulary', nargs='+', type=int, choices=SHAPES, default=[*SHAPES]
  )
  options = parser.parse_args()
  print(f'{"":32}{"seconds":>9}{"ratio":>8} {"quartiles":13}{"CPU ratio":>10}')
  for vocabulary in options.vocabulary:
    shape = SHAPES[vocabulary]
    gathered, all_positions = (
      programs(shape),
      programs(shape, all_positions=True),
    )
    for lengths in ('full', 'geometric'):
      rows = batch(shape, lengths)
      for name in gathered:
        label = f'{vocabulary}, {name}, {lengths}'
        compared = gathered[name], all_positions[name]
        report(label, measure(compared, rows, options.rounds))


def programs(
  shape: Shape, *, all_positions: bool = False
) -> dict[str, Callable[[TokenBatch], Any]]:
  """Compiles an update and two scoring passes, by name."""
  patch = mock.patch.object(
    forward, 'token_stats', unmasked if all_positions else token_stats
  )
  policy, rows = Policy(model(shape)), batch(shape, 'full')
  score = functools.partial(
    forward.make_score_step, policy, 1.0, 1, shape.prompt - 1
  )
  mesh = sharding.make_mesh((1,), jax.devices()[:1])
  with jax.set_mesh(mesh), patch:
    update = compiled_update(shape)
    params = policy.init(jax.random.key(0), mesh)
    scored = jax.jit(score()).lower(params, rows).compile()
    no_moments = (
      jax.jit(score(moments=all_positions)).lower(params, rows).compile()
    )
  return {
    'update': update,
    'scoring': lambda rows: scored(params, rows),
    'no moments': lambda rows: no_moments(params, rows),
  }


def compiled_update(
  shape: Shape, step: int = 0, **settings: Any
) -> Callable[[TokenBatch], Any]:
  """Compiles an update, the only one of its rollout, at optimiser step `step`."""
  policy, tx, token_tx = (
    Policy(model(shape)),
    optax.adam(1e-4),
    optax.identity(),
  )
  update = make_train_step(
    policy,
    CLIPPED,
    token_tx,
    tx,
    StepSettings(
      first_column=shape.prompt - 1, has_old_stats=False, **settings
    ),
  )
  mesh = sharding.make_mesh((1,), jax.devices()[:1])
  with jax.set_mesh(mesh):
    params = policy.init(jax.random.key(0), mesh)
    state = TrainState(
      trainable=params,
      frozen={},
      opt_state=tx.init(params),
      token_state=token_tx.init(covrl.TokenStats.template()),
      step=jnp.asarray(step, jnp.int32),
      last_update=UpdateMeasurements.initial(),
    )
    is_first, key = np.asarray(True), jax.random.key(1)
    rows = batch(shape, 'full')
    run = jax.jit(update).lower(state, rows, is_first, key).compile()
  return lambda rows: run(state, rows, is_first, key)


def unmasked(*arrays: Any, mask: Any, **options: Any) -> Any:
  """Calls `token_stats` for every position instead of those in `mask`."""
  del mask
  return token_stats(*arrays, **options)


def measure(
  compared: tuple[Callable[[TokenBatch], Any], ...],
  rows: TokenBatch,
  rounds: int,
) -> np.ndarray:
  """Wall-clock and CPU seconds `[rounds, 2 programs, 2]`, in alternating order."""
  rows = jax.device_put(rows)
  seconds = np.zeros((rounds + 1, 2, 2))
  for round_number in range(rounds + 1):
    for index in (0, 1) if round_number % 2 else (1, 0):
      start = time.perf_counter(), time.process_time()
      jax.block_until_ready(compared[index](rows))
      seconds[round_number, index] = (
        time.perf_counter() - start[0],
        time.process_time() - start[1],
      )
  # The first round warms up.
  return seconds[1:]


def report(label: str, seconds: np.ndarray) -> None:
  """Prints seconds of the first program and its ratios to the second in a line."""
  ratios = seconds[:, 0] / seconds[:, 1]
  low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75), axis=0)
  print(
    f'{label:32}{np.median(seconds[:, 0, 0]):9.3f}{median[0]:8.2f} '
    f'{f"{low[0]:.2f}–{high[0]:.2f}":13}{median[1]:9.2f}',
    f'{low[1]:.2f}–{high[1]:.2f}',
    flush=True,
  )


def batch(shape: Shape, lengths: str) -> TokenBatch:
  """A batch of random tokens whose prompts have full length."""
  rng = np.random.default_rng(0)
  count, width = shape.sequences, shape.prompt + shape.response
  response_lengths = np.full(count, shape.response)
  if lengths == 'geometric':
    geometric_lengths = rng.geometric(1 / MEAN_LENGTH, count)
    response_lengths = np.minimum(geometric_lengths, shape.response)
  columns = np.broadcast_to(np.arange(width, dtype=np.int32), (count, width))
  ends = shape.prompt + response_lengths[:, None]
  is_token = columns < ends
  mask = (columns >= shape.prompt - 1) & (columns < ends - 1)
  tokens = rng.integers(0, shape.vocabulary, (count, width + 1))
  zeros: Any = np.zeros((count, width), np.float32)
  row_advantages = rng.normal(size=(count, 1))
  arrays: dict[str, Any] = {
    'tokens': tokens[:, :-1].astype(np.int32),
    'targets': tokens[:, 1:].astype(np.int32),
    'positions': np.where(is_token, columns, 0),
    'segment_ids': is_token.astype(np.int32),
    'loss_mask': mask,
    'weights': mask.astype(np.float32),
    'advantages': np.where(mask, row_advantages, 0).astype(np.float32),
    'sequence_ids': np.broadcast_to(
      np.arange(count, dtype=np.int32)[:, None], (count, width)
    ),
  }
  for name in ('old_logprobs', 'old_entropy', 'sampler_logprobs'):
    arrays[name] = zeros
  moments = TokenMoments(
    square=zeros, square_log=zeros, square_log_square=zeros
  )
  return TokenBatch(**arrays, old_moments=moments)


if __name__ == '__main__':
  main()
