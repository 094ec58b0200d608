# SPDX-License-Identifier: Apache-2.0
"""Cost of covrl's decode step: its parts, and its share of the roofline."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from peers.covrl_peer import model
from peers.driver import SHAPES
from peers.worker import PAD_ID, SCALE, Shape

from covrl.models import Policy
from covrl.rollout import Sampling
from covrl.rollout.decoder import SlotDecoder
from covrl.rollout.samples import record
from covrl.rollout.sampling import sample_token
from covrl.rollout.slots import State

SEGMENT = 16  # steps of a compiled call
# Sizes of the products and of the array that measure the machine.
MATRIX_SIZE = 1536
READ_BYTES = 1 << 28
# Shapes of the roofline: 64 rows each.
ROOFLINE_SHAPES = (
  SHAPES['8x8'],
  dataclasses.replace(SHAPES['32k'], prompts=16),
)


class Decoding:
  """Responses that are decoded to their full length, segment by segment."""

  def __init__(self, shape: Shape) -> None:
    """Compiles the programs and processes the prompts."""
    self.shape, self.policy = shape, Policy(model(shape))
    self.params = self.policy.init(jax.random.key(0))
    self._sampling = Sampling.make()
    # Without end tokens, all responses have full length.
    decoder = SlotDecoder(self.policy, (), PAD_ID, shape.response)
    start = functools.partial(decoder.start, shards=1, slots=shape.sequences)
    self._start = jax.jit(start)

    def run(params: PyTree, state: State) -> State:
      samples = state.samples
      state, steps = decoder.run(params, state, steps=SEGMENT)
      return state._replace(samples=record(samples, steps, 1))

    arguments = self.params, self._initial_state()
    self._run = jax.jit(run, donate_argnums=1).lower(*arguments).compile()

  def seconds_per_step(self) -> float:
    """Mean duration of a decode step; the prefill draws the first token."""
    state = jax.block_until_ready(self._initial_state())
    segments = (self.shape.response - 1) // SEGMENT
    started = time.perf_counter()
    for _ in range(segments):
      state = self._run(self.params, state)
    jax.block_until_ready(state)
    return (time.perf_counter() - started) / (segments * SEGMENT)

  def memory(self) -> float:
    """Memory of a segment's program, relative to weights, cache and one step's logits."""
    memory = self._run.memory_analysis()
    if memory is None:
      return float('nan')
    state = jax.eval_shape(self._initial_state)
    resident_bytes = _num_bytes(self.params) + _num_bytes(state.cache)
    logits = 4 * self.shape.sequences * self.shape.vocabulary
    total = (
      memory.argument_size_in_bytes
      + memory.temp_size_in_bytes
      + memory.output_size_in_bytes
      - memory.alias_size_in_bytes
    )
    return total / (resident_bytes + logits)

  def _initial_state(self) -> State:
    shape = self.shape
    prompts = jnp.ones((shape.prompts, shape.prompt), jnp.int32)
    ids = jnp.arange(shape.sequences, dtype=jnp.int32)
    return self._start(
      self.params,
      prompts,
      prompts > 0,
      jax.random.key(0),
      ids,
      self._sampling,
    )


class Work(NamedTuple):
  """Floating-point operations of a mean step, and bytes that it has to read."""

  operations: float
  read_bytes: float


def work(shape: Shape) -> Work:
  """Work of a mean step of full-length responses.

  Weights are read once per step, keys and values of a prompt once per group,
  and those of a response once.
  """
  policy = Policy(model(shape))
  weights = policy.num_params - shape.vocabulary * shape.width
  heads, kv_heads, head_dim = shape.head_sizes
  mean_response = shape.response / 2
  attended = shape.sequences * (shape.prompt + mean_response)
  cached = shape.prompts * shape.prompt + shape.sequences * mean_response
  return Work(
    operations=2 * shape.sequences * weights
    + 4 * attended * heads * head_dim * shape.layers,
    read_bytes=4 * (weights + 2 * cached * kv_heads * head_dim * shape.layers),
  )


def roofline(rounds: int) -> None:
  """Prints the shares of the roofline of decoding with 64 rows."""
  decodings = [Decoding(shape) for shape in ROOFLINE_SHAPES]
  times = alternate(
    {str(d.shape): d.seconds_per_step for d in decodings}
    | {'product': _product_timer(), 'read': _read_timer()},
    rounds,
  )
  rate = 2 * MATRIX_SIZE**3 / times['product']
  bandwidth = READ_BYTES / times['read']
  print(
    f'\nmatrix products {rate / 1e9:.0f} GFLOP/s, reads '
    f'{bandwidth / 1e9:.1f} GB/s\n\n'
    '| 64 rows | ms per step | bound by products, ms | bound by reads, ms | '
    'share of the roofline | memory |\n|---|---|---|---|---|---|'
  )
  for decoding in decodings:
    step_work, seconds = work(decoding.shape), times[str(decoding.shape)]
    bounds = step_work.operations / rate, step_work.read_bytes / bandwidth
    print(
      f'| {decoding.shape} | {seconds * 1e3:.2f} | {bounds[0] * 1e3:.2f} | '
      f'{bounds[1] * 1e3:.2f} | {max(bounds) / seconds:.0%} | '
      f'{decoding.memory():.2f} |'
    )


def token_sampling(rounds: int) -> None:
  """Prints the share of a decode step that sampling tokens takes."""
  print(
    '\n| rows × vocabulary | ms per step | sampling, ms | share |\n'
    '|---|---|---|---|'
  )
  for vocabulary in (32_000, 152_000):
    for prompts in (4, 16):
      shape = dataclasses.replace(
        SHAPES['32k'], prompts=prompts, vocabulary=vocabulary, response=49
      )
      seconds = alternate(
        {
          'step': Decoding(shape).seconds_per_step,
          'sampling': _sampling_timer(shape.sequences, vocabulary),
        },
        rounds,
      )
      step, sampling = seconds['step'], seconds['sampling']
      print(
        f'| {shape.sequences} × {vocabulary:,} | {step * 1e3:.2f} | '
        f'{sampling * 1e3:.2f} | {sampling / step:.1%} |',
        flush=True,
      )


def alternate(
  functions: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, float]:
  """Median return value of each function; the functions are called in turn."""
  for function in functions.values():
    function()
  times = [
    [function() for function in functions.values()] for _ in range(rounds)
  ]
  return dict(zip(functions, np.median(times, axis=0).tolist(), strict=True))


def _timed(function: Callable[..., Any], *arguments: Any) -> float:
  """Seconds of a call, the mean of as many as take a tenth of a second."""
  calls, started = 0, time.perf_counter()
  while (elapsed := time.perf_counter() - started) < 0.1:
    jax.block_until_ready(function(*arguments))
    calls += 1
  return elapsed / calls


def _product_timer() -> Callable[[], float]:
  """A function that times a matrix product."""
  matrix = jax.random.normal(jax.random.key(0), (MATRIX_SIZE, MATRIX_SIZE))
  return functools.partial(_timed, jax.jit(jnp.matmul), matrix, matrix)


def _read_timer() -> Callable[[], float]:
  """A function that times reading `READ_BYTES` of memory."""
  array = jnp.ones(READ_BYTES // 4, jnp.float32)
  return functools.partial(_timed, jax.jit(jnp.sum), array)


def _sampling_timer(rows: int, vocabulary: int) -> Callable[[], float]:
  """A function that times sampling one token per row, from random logits."""

  @jax.jit
  def sample(logits: jax.Array, keys: jax.Array, step: jax.Array) -> Any:
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
    return sample_token(logits, keys, Sampling.make())

  keys = jax.random.split(jax.random.key(1), rows)
  logits = SCALE * jax.random.normal(jax.random.key(0), (rows, vocabulary))
  return functools.partial(_timed, sample, logits, keys, jnp.asarray(1))


def _num_bytes(tree: Any) -> int:
  """Bytes of a tree of arrays or shapes."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
