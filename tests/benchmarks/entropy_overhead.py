# SPDX-License-Identifier: Apache-2.0
"""Cost of entropy control: a train step with a method relative to one without.

  python tests/benchmarks/entropy_overhead.py [--rounds=15] [--sequences=128]

Every round runs the step of every method once, in rotating order, and the
uncontrolled step before and after each. A method's ratio is relative to the mean
of these two; the median over rounds is printed with the quartiles, for wall-clock
seconds and for CPU seconds, which other load on the machine disturbs less. Rows
are the Countdown policy's: 128 sequences of 19 tokens, on one device. Most of the
time is compilation; JAX_COMPILATION_CACHE_DIR keeps the programs for later runs.
"""

from __future__ import annotations

import argparse
import functools
import os
import time
from collections.abc import Callable
from typing import Any, TypeAlias

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Float

import covrl
from covrl.models import Policy, countdown
from covrl.parallel import sharding
from covrl.train import Loss, StepSettings, make_train_step
from covrl.train.state_sharding import abstract_opt_state, shardings
from covrl.types import (
  SelectionSource,
  TokenBatch,
  TokenMoments,
  TrainState,
  UpdateMeasurements,
)

# Values of wall-clock and CPU time.
FloatPair: TypeAlias = Float[np.ndarray, '2']

PROMPT, RESPONSE = 8, 12  # tokens
WIDTH = PROMPT + RESPONSE - 1
FRACTION = 0.05

# Every method by the expression that makes it; a function of the selection source.
METHODS: dict[
  str, Callable[[SelectionSource], optax.GradientTransformation]
] = {
  'kl_cov': lambda source: covrl.kl_cov(FRACTION, selection_source=source),
  "kl_cov(score='state')": lambda source: covrl.kl_cov(
    FRACTION, score='state', selection_source=source
  ),
  "kl_cov(score='exact')": lambda source: covrl.kl_cov(
    FRACTION, score='exact', selection_source=source
  ),
  "kl_cov(divergence='k3')": lambda source: covrl.kl_cov(
    FRACTION, divergence='k3', selection_source=source
  ),
  'clip_cov': lambda source: covrl.clip_cov(
    FRACTION, 0.1, 5.0, selection_source=source
  ),
  'forking_tokens': lambda source: covrl.forking_tokens(
    selection_source=source
  ),
  'entropy_bonus': lambda _: covrl.entropy_bonus(0.01),
  'entropy_bonus(adaptive_bonus)': lambda _: covrl.entropy_bonus(
    covrl.adaptive_bonus()
  ),
  'entropy_bonus(target_entropy)': lambda _: covrl.entropy_bonus(
    covrl.target_entropy(0.3)
  ),
  'detach_drain(target_entropy)': lambda _: covrl.detach_drain(
    covrl.target_entropy(0.3)
  ),
  'kl_cov(target_entropy)': lambda source: covrl.kl_cov(
    FRACTION, covrl.target_entropy(0.3), selection_source=source
  ),
  'entropy_bonus(entropy_band)': lambda _: covrl.entropy_bonus(
    covrl.controllers.entropy_band(0.2, 0.4, below=0.01)
  ),
  'repo': lambda _: covrl.repo(),
  'repo(doubling_scale)': lambda _: covrl.repo(
    covrl.controllers.doubling_scale(0.3)
  ),
  'steer': lambda _: covrl.steer(),
  'ce_gppo': lambda _: covrl.ce_gppo(),
  'entropy_shaped': lambda _: covrl.entropy_shaped(),
  'entropic': lambda _: covrl.entropic(),
  'entrocraft': lambda _: covrl.entrocraft(),
  'sample_weights': lambda _: covrl.sample_weights(1.0, 0.5),
  'kl_to_reference': lambda _: covrl.kl_to_reference(),
  'truncated_importance_weights': (
    lambda _: covrl.truncated_importance_weights()
  ),
}
SELECTION_METHODS = (
  'kl_cov',
  "kl_cov(score='state')",
  "kl_cov(score='exact')",
  "kl_cov(divergence='k3')",
  'clip_cov',
  'forking_tokens',
  'kl_cov(target_entropy)',
)
# Losses that control entropy by their own form, each without a token chain.
LOSSES = {
  'clipped_surrogate(low=0.2, high=0.28)': functools.partial(
    covrl.clipped_surrogate, low=0.2, high=0.28
  ),
  'clipped_surrogate(dual_clip=3)': functools.partial(
    covrl.clipped_surrogate, dual_clip=3.0
  ),
  'policy_gradient': covrl.policy_gradient,
  'cispo': covrl.losses.cispo,
  "gspo(form='sequence')": functools.partial(covrl.gspo, form='sequence'),
  "gspo(form='token')": functools.partial(covrl.gspo, form='token'),
  'geo_mean': covrl.losses.geo_mean,
  'sapo': covrl.losses.sapo,
  'dppo': covrl.losses.dppo,
}
# Numbers of micro-batches and selection sources, by name.
SETTINGS: dict[str, tuple[int, SelectionSource]] = {
  'one': (1, 'old'),
  'four': (4, 'old'),
  'current': (4, 'current'),
}
CLIPPED = functools.partial(covrl.clipped_surrogate, low=0.2, high=0.2)


def main() -> None:
  """Measures, for one micro-batch, for four, and for current statistics."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rounds', type=int, default=15)
  parser.add_argument('--sequences', type=int, default=128)
  parser.add_argument('--only', nargs='*', choices=[*METHODS, *LOSSES])
  parser.add_argument(
    '--settings', nargs='*', choices=SETTINGS, default=[*SETTINGS]
  )
  options = parser.parse_args()
  mesh = sharding.make_mesh((1,), jax.devices()[:1])
  names = options.only or [*METHODS, *LOSSES]
  device = jax.devices()[0]
  print(f'{device.device_kind}, {options.sequences} × {WIDTH} tokens')
  for micro_batches, source in (SETTINGS[name] for name in options.settings):
    chosen = [n for n in names if source == 'old' or n in SELECTION_METHODS]
    print(f'\n{micro_batches} micro-batches, selection_source={source!r}')
    measure(chosen, micro_batches, source, mesh, options)


def measure(
  names: list[str],
  micro_batches: int,
  source: SelectionSource,
  mesh: Mesh,
  options: argparse.Namespace,
) -> None:
  """Measures the ratio of each method to no control and prints it in a line."""
  no_control = CLIPPED, optax.identity()
  steps = {
    'no control': compiled_step(*no_control, micro_batches, mesh, options)
  }
  for name in names:
    loss = LOSSES.get(name, CLIPPED)
    tx = METHODS[name](source) if name in METHODS else optax.identity()
    steps[name] = compiled_step(loss, tx, micro_batches, mesh, options)
  no_control_step = steps.pop('no control')
  order = list(steps)
  ratios: dict[str, list[FloatPair]] = {name: [] for name in order}
  no_control_seconds = [timed(no_control_step)]
  for round_number in range(options.rounds):
    for name in (
      order[round_number % len(order) :] + order[: round_number % len(order)]
    ):
      seconds = timed(steps[name])
      no_control_seconds.append(timed(no_control_step))
      ratios[name].append(
        2 * seconds / (no_control_seconds[-2] + no_control_seconds[-1])
      )
  median = np.median(no_control_seconds, axis=0) * 1e3
  print(f'no control: {median[0]:.1f} ms per step, {median[1]:.1f} ms of CPU')
  print(f'{"method":38} {"wall":>7} {"quartiles":>13} {"CPU":>7} quartiles')
  for name, method_ratios in ratios.items():
    quartiles = np.quantile(method_ratios, (0.25, 0.5, 0.75), axis=0)
    columns = (
      f'{median:7.3f} {low:7.3f}–{high:.3f}'
      for low, median, high in quartiles.T
    )
    print(f'{name:38}', *columns, flush=True)


def timed(step: Callable[[], None]) -> FloatPair:
  """Wall-clock and CPU seconds of a step."""
  started, cpu_started = time.perf_counter(), time.process_time()
  step()
  return np.array(
    (time.perf_counter() - started, time.process_time() - cpu_started)
  )


def compiled_step(
  loss: Loss,
  tx: optax.GradientTransformation,
  micro_batches: int,
  mesh: Mesh,
  options: argparse.Namespace,
) -> Callable[[], None]:
  """A compiled step that starts from the same state at every call."""
  policy = Policy(countdown(32))
  adam = optax.adam(3e-4)
  step = make_train_step(
    policy,
    loss,
    tx,
    adam,
    StepSettings(micro_batches=micro_batches),
  )
  with jax.set_mesh(mesh):
    params = policy.init(jax.random.key(0), mesh)
    state = TrainState(
      trainable=params,
      frozen={},
      opt_state=jax.jit(
        adam.init,
        out_shardings=shardings(
          abstract_opt_state(adam, policy.abstract_params(mesh), mesh)
        ),
      )(params),
      token_state=tx.init(covrl.TokenStats.template()),
      step=jnp.zeros((), jnp.int32),
      last_update=UpdateMeasurements.initial()._replace(
        log_ratio_noise=jnp.asarray(1e-6, jnp.float32)
      ),
    )
    rows = sharding.shard_batch(batch(options.sequences), mesh)
    key, is_first = jax.random.key(1), np.asarray(False)
    run = jax.jit(step).lower(state, rows, is_first, key).compile()
    jax.block_until_ready(run(state, rows, is_first, key))

  def run_once() -> None:
    jax.block_until_ready(run(state, rows, is_first, key))

  return run_once


def batch(sequences: int) -> TokenBatch:
  """A batch of random tokens `[sequences, WIDTH]`, with old statistics."""
  rng = np.random.default_rng(0)
  shape = sequences, WIDTH
  columns = np.broadcast_to(np.arange(WIDTH, dtype=np.int32), shape)
  ends = rng.integers(PROMPT + 2, WIDTH + 1, (sequences, 1))
  is_token = columns < ends
  mask = is_token & (columns >= PROMPT - 1)
  logprobs = -rng.exponential(0.4, shape).astype(np.float32)
  row_advantages = rng.normal(size=(sequences, 1))
  arrays: dict[str, Any] = {
    'tokens': rng.integers(3, 30, shape).astype(np.int32),
    'targets': rng.integers(3, 30, shape).astype(np.int32),
    'positions': np.where(is_token, columns, 0),
    'segment_ids': is_token.astype(np.int32),
    'loss_mask': mask,
    'weights': mask.astype(np.float32),
    'advantages': np.where(mask, row_advantages, 0).astype(np.float32),
    'old_logprobs': logprobs,
    'old_entropy': np.abs(logprobs),
    'sampler_logprobs': logprobs,
    'ref_logprobs': logprobs - 0.1,
    'sequence_ids': np.broadcast_to(
      np.arange(sequences, dtype=np.int32)[:, None], shape
    ),
  }
  moments: dict[str, Any] = {
    'square': np.exp(logprobs),
    'square_log': logprobs * np.exp(logprobs),
    'square_log_square': logprobs**2 * np.exp(logprobs),
  }
  return TokenBatch(**arrays, old_moments=TokenMoments(**moments))


if __name__ == '__main__':
  main()
