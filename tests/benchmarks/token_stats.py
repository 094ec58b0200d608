# SPDX-License-Identifier: Apache-2.0
"""Forward and backward pass of token statistics, compared with other libraries.

  python tests/benchmarks/token_stats.py
  python tests/benchmarks/token_stats.py --chip=v5p:2x2x1 --dtype=bfloat16 \
    --tokens=32768 --width=3584 --vocabulary=152064

The first command alternates the implementations in one process and prints
medians: wall-clock seconds, and CPU seconds over all cores, which other load
disturbs less. The second compiles for one chip of a TPU topology, without a TPU.
Memory is that of a program besides its arguments and results (the gradients).

  whole      log π and H of all logits, their gradients in closed form
  chunked    the same, some columns of the vocabulary at a time, in XLA
  pallas     the same, in kernels that only a TPU runs
  autodiff   log π and H of all logits, gradients by autodiff
  optax      log π of all logits: softmax_cross_entropy_with_integer_labels
  tokamax    Σ log π: linear_softmax_cross_entropy_loss, in the implementation
             that it has for the platform; needs `pip install tokamax`
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import time
from collections.abc import Callable
from typing import Any

# Settings to compile for a TPU that is not attached.
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies

from covrl.statistics import token_stats, token_stats_from_logits

MIB = 2**20
Objective = Callable[..., jax.Array]


def main() -> None:
  """Prints the tables."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--tokens', type=int, default=4096)
  parser.add_argument('--width', type=int, default=256)
  parser.add_argument('--vocabulary', type=int, default=32768)
  parser.add_argument('--dtype', default='float32')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--chip', default='', help='compile for it, run nothing')
  options = parser.parse_args()
  make = functools.partial(make_arguments, options)
  if options.chip:
    chip = topologies.get_topology_desc(
      platform='tpu', topology_name=options.chip
    ).devices[0]
    programs = compile_all(jax.eval_shape(make), chip)
    report(programs, {}, {})
  else:
    programs = compile_all(jax.eval_shape(make), jax.devices()[0])
    report(programs, *time_all(programs, make(), options.rounds))


def make_arguments(options: argparse.Namespace) -> tuple[jax.Array, ...]:
  """Hidden states, unembedding, targets, and weights of log π and H."""
  tokens, width, vocabulary = options.tokens, options.width, options.vocabulary
  keys = jax.random.split(jax.random.key(0), 5)
  return (
    jax.random.normal(keys[0], (tokens, width), options.dtype),
    jax.random.normal(keys[1], (width, vocabulary), options.dtype) / 16,
    jax.random.randint(keys[2], (tokens,), 0, vocabulary),
    jax.random.normal(keys[3], (tokens,)),
    jax.random.normal(keys[4], (tokens,)),
  )


def implementations(platform: str) -> dict[str, Objective]:
  """Returns the implementations compared on a platform, the reference first."""
  objectives: dict[str, Objective] = {
    'whole': materialised,
    'chunked': functools.partial(fused, 'chunked'),
    'autodiff': autodiff,
    'optax': cross_entropy,
  }
  if platform == 'tpu':
    objectives['pallas'] = functools.partial(fused, 'pallas')
  else:
    print('pallas is not compared: there is no TPU')
  try:
    tokamax = importlib.import_module('tokamax')
  except ImportError as error:
    print(f'tokamax is not compared: {error}')
  else:
    objectives['tokamax'] = functools.partial(
      linear_cross_entropy, tokamax.linear_softmax_cross_entropy_loss
    )
  return objectives


def materialised(
  hidden: Any, head: Any, targets: Any, *weights: Any
) -> jax.Array:
  """Statistics of whole logits, gradients in closed form."""
  stats = token_stats_from_logits(all_logits(hidden, head), targets)
  return jnp.sum(weights[0] * stats.logprobs + weights[1] * stats.entropy)


def fused(
  implementation: Any, hidden: Any, head: Any, targets: Any, *weights: Any
) -> jax.Array:
  """Statistics by one of `token_stats`' implementations."""
  stats = token_stats(hidden, head, targets, implementation=implementation)
  return jnp.sum(weights[0] * stats.logprobs + weights[1] * stats.entropy)


def autodiff(hidden: Any, head: Any, targets: Any, *weights: Any) -> jax.Array:
  """Returns statistics by plain JAX code, for automatic differentiation."""
  log_pi = jax.nn.log_softmax(all_logits(hidden, head))
  logprobs = jnp.take_along_axis(log_pi, targets[:, None], axis=1)[:, 0]
  entropy = -jnp.sum(jnp.exp(log_pi) * log_pi, axis=1)
  return jnp.sum(weights[0] * logprobs + weights[1] * entropy)


def cross_entropy(
  hidden: Any, head: Any, targets: Any, *weights: Any
) -> jax.Array:
  """Sum of log π alone, by optax."""
  losses = optax.softmax_cross_entropy_with_integer_labels(
    all_logits(hidden, head), targets
  )
  return -jnp.sum(weights[0] * losses)


def linear_cross_entropy(
  loss: Objective, hidden: Any, head: Any, targets: Any, *_: Any
) -> jax.Array:
  """Unweighted sum of log π alone, by tokamax."""
  return -loss(hidden, targets, head)


def all_logits(hidden: Any, head: Any) -> jax.Array:
  """Logits of all tokens, in float32."""
  return jnp.dot(hidden, head, preferred_element_type=jnp.float32)


def compile_all(arguments: tuple[Any, ...], device: Any) -> dict[str, Any]:
  """Programs of value and gradients by implementation, for one device."""
  sharding = jax.sharding.SingleDeviceSharding(device)
  arguments = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    arguments,
  )
  programs = {}
  for name, objective in implementations(device.platform).items():
    step = jax.jit(jax.value_and_grad(objective, argnums=(0, 1)))
    try:
      programs[name] = step.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
      print(f'{name} does not compile: {str(error).splitlines()[0]}')
  return programs


def time_all(
  programs: dict[str, Any], arguments: tuple[jax.Array, ...], rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
  """Median wall-clock and CPU seconds; the implementations take turns."""
  wall_seconds: dict[str, list[float]] = {name: [] for name in programs}
  cpu_seconds: dict[str, list[float]] = {name: [] for name in programs}
  for round_number in range(rounds + 1):
    for name, program in programs.items():
      start = time.perf_counter(), time.process_time()
      jax.block_until_ready(program(*arguments))
      # The first round warms up.
      if round_number:
        wall_seconds[name].append(time.perf_counter() - start[0])
        cpu_seconds[name].append(time.process_time() - start[1])

  def medians(times: dict[str, list[float]]) -> dict[str, float]:
    return {name: float(np.median(each)) for name, each in times.items()}

  return medians(wall_seconds), medians(cpu_seconds)


def report(
  programs: dict[str, Any],
  wall_seconds: dict[str, float],
  cpu_seconds: dict[str, float],
) -> None:
  """Prints a line per implementation; ratios are to the first."""
  reference = next(iter(programs))
  memory = {
    name: program.memory_analysis().temp_size_in_bytes / MIB
    for name, program in programs.items()
  }
  columns = {
    'MiB': memory,
    'seconds': wall_seconds,
    'core seconds': cpu_seconds,
  }
  columns = {name: column for name, column in columns.items() if column}
  print(f'{"":10}' + ''.join(f'{name:>14}{"ratio":>8}' for name in columns))
  for name in programs:
    cells = (
      f'{column[name]:14.3f}{column[name] / column[reference]:8.3f}'
      for column in columns.values()
    )
    print(f'{name:10}' + ''.join(cells))


if __name__ == '__main__':
  main()
