# SPDX-License-Identifier: Apache-2.0
"""Time of exact selection, compared with a sort and `jax.lax.top_k`.

  python tests/benchmarks/selection.py                    # N = 2²², k = 8,192
  python tests/benchmarks/selection.py --log2_tokens=24   # on a GPU

Runs on JAX's default device. The implementations alternate, so that other load
on the machine affects all of them; times are medians over rounds. `select_random`
is compared with a top-k over drawn noise. The selected set is first checked
against a stable sort.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from rich.console import Console
from rich.table import Table

import covrl

Implementation = Callable[[Float[Array, 'B T'], Bool[Array, 'B T']], Array]


def main() -> None:
  """Measures and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--log2_tokens', type=int, default=22)
  parser.add_argument('--k', type=int, default=8192)
  parser.add_argument('--rounds', type=int, default=15)
  arguments = parser.parse_args()
  rows = 2 ** (arguments.log2_tokens // 2)
  shape = (rows, 2**arguments.log2_tokens // rows)
  scores = jax.random.normal(jax.random.key(0), shape)
  mask = jnp.ones(shape, bool)
  tied = jnp.round(scores)

  implementations = make_implementations(arguments.k, scores.size)
  inputs = dict.fromkeys(implementations, scores) | {
    'select_top, many ties': tied
  }
  compiled = {
    name: jax.jit(implementation).lower(scores, mask).compile()
    for name, implementation in implementations.items()
  }
  for name in ('select_top', 'select_top, many ties'):
    check_selection(
      inputs[name], compiled[name](inputs[name], mask), arguments.k
    )

  times: dict[str, list[float]] = {name: [] for name in implementations}
  for _ in range(arguments.rounds):
    for name, run in compiled.items():
      start = time.perf_counter()
      jax.block_until_ready(run(inputs[name], mask))
      times[name].append(time.perf_counter() - start)
  show_times(times, shape, arguments.k)


def make_implementations(k: int, size: int) -> dict[str, Implementation]:
  """Returns the implementations by name: `(scores, mask) -> array`."""
  fraction = k / size

  def select_top(
    scores: Float[Array, 'B T'], mask: Bool[Array, 'B T']
  ) -> Array:
    return covrl.select_top(scores, mask, fraction=fraction)

  def select_random(
    scores: Float[Array, 'B T'], mask: Bool[Array, 'B T']
  ) -> Array:
    del scores
    return covrl.select_random(
      mask, fraction=fraction, key=jax.random.key(1), step=0
    )

  def top_k_of_noise(
    scores: Float[Array, 'B T'], mask: Bool[Array, 'B T']
  ) -> Array:
    del scores
    noise = jax.random.uniform(jax.random.key(1), (mask.size,))
    return jax.lax.top_k(jnp.where(mask.reshape(-1), noise, 0), k)[1]

  return {
    'jnp.sort': lambda scores, mask: jnp.sort(scores.reshape(-1)),
    'jax.lax.top_k': lambda scores, mask: jax.lax.top_k(scores.reshape(-1), k)[
      1
    ],
    'select_top': select_top,
    'select_top, many ties': select_top,
    'uniform noise, jax.lax.top_k': top_k_of_noise,
    'select_random': select_random,
  }


def check_selection(
  scores: Float[Array, 'B T'], chosen: Bool[Array, 'B T'], k: int
) -> None:
  """Stops unless the chosen are the first k of a stable descending sort."""
  order = np.argsort(-np.asarray(scores).reshape(-1), kind='stable')
  expected = np.zeros(scores.size, bool)
  expected[order[:k]] = True
  np.testing.assert_array_equal(np.asarray(chosen).reshape(-1), expected)


def show_times(
  times: dict[str, list[float]], shape: tuple[int, int], k: int
) -> None:
  """Prints medians, and their ratios to the sort and to top_k."""
  medians = {
    name: statistics.median(seconds) for name, seconds in times.items()
  }
  table = Table(
    title=f'{shape[0]} × {shape[1]} tokens, k = {k}, '
    f'{jax.devices()[0].device_kind}, JAX {jax.__version__}'
  )
  table.add_column('')
  for column in ('median, ms', 'fastest, ms', 'sort ÷ time', 'time ÷ top_k'):
    table.add_column(column, justify='right')
  for name, median in medians.items():
    table.add_row(
      name,
      f'{median * 1e3:.1f}',
      f'{min(times[name]) * 1e3:.1f}',
      f'{medians["jnp.sort"] / median:.1f}',
      f'{median / medians["jax.lax.top_k"]:.2f}',
    )
  Console(width=100).print(table)


if __name__ == '__main__':
  main()
