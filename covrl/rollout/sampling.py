# SPDX-License-Identifier: Apache-2.0
"""Token sampling from logits: temperature, top-k, top-p, min-p, greedy.

A token is drawn by inverting the cumulative distribution with one uniform number
per row: first a block of the vocabulary, from the sums of blocks, then a token
of this block. The vocabulary may be split over devices; then the sums of blocks
and the drawn block are exchanged, and never the logits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import P
from jaxtyping import Array, Bool, Float, Int, Key

from covrl.array_checks import check_array, concrete_array, concrete_number
from covrl.parallel import sharding
from covrl.rollout.truncation import Threshold, VocabShard, find_threshold

# Tokens per block: a vector register's width, and about √V of most vocabularies.
BLOCK = 128
# From this many tokens on, a copy that pads them to whole blocks costs more than
# all else that drawing a token does.
_LARGE_VOCABULARY = 32 * BLOCK
# Outside of these, float32 overflows or loses all logits; smaller top-p are 0.
_MIN_TEMPERATURE, _MAX_TEMPERATURE, _MIN_TOP_P = 1e-6, 1e6, 1e-30
# Above this number of logits, truncation processes rows in groups: at most
# `_MAX_GROUPS`, each of at least `_MIN_ROWS` rows.
_MAX_UNGROUPED_LOGITS = 2**20
_MAX_GROUPS, _MIN_ROWS = 8, 8
# JAX scope of the work that only truncation causes.
TRUNCATION_SCOPE = 'truncation'


class Sampling(NamedTuple):
  """Sampling parameters; traced arrays, so that changes never recompile.

  Each is a scalar or has one entry per row.

  Attributes:
    temperature: divides the logits; 0 is greedy.
    top_p: samples among the likeliest tokens that together have this
      probability; 1 is all tokens.
    top_k: samples among this many likeliest tokens; 0 is all tokens.
    min_p: samples among the tokens with at least this probability, relative to
      the likeliest token's; 0 is all tokens.
  """

  temperature: Float[Array, '*S']
  top_p: Float[Array, '*S']
  top_k: Int[Array, '*S']
  min_p: Float[Array, '*S']

  @classmethod
  def make(
    cls,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
  ) -> Sampling:
    """Checks numbers and converts them to arrays.

    Raises:
      ValueError: if a number is out of range.

    >>> float(Sampling.make(temperature=0.5).top_p)
    1.0
    """
    check_sampling(temperature, top_p, top_k, min_p)
    return cls(
      temperature=jnp.asarray(temperature, jnp.float32),
      top_p=jnp.asarray(top_p, jnp.float32),
      top_k=jnp.asarray(top_k, jnp.int32),
      min_p=jnp.asarray(min_p, jnp.float32),
    )

  def check(self) -> None:
    """Checks parameters that were not made by `make`.

    Raises:
      TypeError: one is of another dtype.
      ValueError: one is not a scalar, or out of range.
    """
    for name, value in self._asdict().items():
      check_array(name, value, 'int' if name == 'top_k' else 'real', '')
    numbers = [concrete_array(value) for value in self]
    values = [number.item() for number in numbers if number is not None]
    if len(values) == len(numbers):
      check_sampling(*values)

  def of_rows(self, count: int) -> Sampling:
    """Sampling parameters with one entry per row."""
    return Sampling(*(jnp.broadcast_to(x, (count,)) for x in self))

  def truncates(self, vocab_size: int) -> Bool[Array, '*S']:
    """Whether top-k, top-p or min-p may leave out tokens."""
    in_top_k = (self.top_k > 0) & (self.top_k < vocab_size)
    return (self.top_p < 1) | in_top_k | (self.min_p > 0)


def check_sampling(
  temperature: float, top_p: float, top_k: int, min_p: float
) -> None:
  """Checks sampling parameters, see `Sampling`.

  Raises:
    TypeError: a value is not a number.
    ValueError: if a number is out of range.
  """
  for name, value in (
    ('temperature', temperature),
    ('top_p', top_p),
    ('top_k', top_k),
    ('min_p', min_p),
  ):
    concrete_number(value, name, allow_schedule=False)
  if not 0.0 <= temperature < float('inf'):
    raise ValueError(
      f'temperature must be finite and at least 0, got {temperature}'
    )
  if temperature and not _MIN_TEMPERATURE <= temperature <= _MAX_TEMPERATURE:
    raise ValueError(
      f'temperature must be 0 or lie in [{_MIN_TEMPERATURE:g},'
      f' {_MAX_TEMPERATURE:g}], got {temperature}'
    )
  if not 0.0 < top_p <= 1.0:
    raise ValueError(f'top_p must lie in (0, 1], got {top_p}')
  if top_p < _MIN_TOP_P:
    raise ValueError(f'top_p must be at least {_MIN_TOP_P:g}, got {top_p}')
  if not 0 <= top_k < 2**31 or top_k != int(top_k):
    raise ValueError(f'top_k must be a whole number from 0, got {top_k}')
  if not 0.0 <= min_p <= 1.0:
    raise ValueError(f'min_p must lie in [0, 1], got {min_p}')


def sample_token(
  logits: Float[Array, 'S V'], keys: Key[Array, ' S'], sampling: Sampling
) -> tuple[Int[Array, ' S'], Float[Array, ' S'], Float[Array, ' S']]:
  """Samples one token per row with the row's own PRNG key.

      token = min {v : Σ_{w ≤ v} q_w > u},    u uniform in [0, 1),

  q the truncated distribution. u has a resolution of 2^−24, and so have the
  sums in float32. With temperature 0 the token is the likeliest, the smallest
  id among equals, and log-probabilities are those of temperature 1. Tokens with a
  logit of −∞ are never drawn; with ∞ or NaN, log-probabilities of the row are NaN.

  Args:
    logits: logits of the next token, in float32 or wider. On a mesh, rows and
      vocabulary may be split by `ROLLOUT_RULES`.
    keys: one PRNG key per row; a row's token does not depend on other rows.
    sampling: temperature and truncation.

  Returns:
    The tokens; their log-probabilities with temperature and before truncation,
    in nats; and the same after truncation.
  """
  rows, vocab_size = logits.shape
  sampling = sampling.of_rows(rows)
  uniform = jax.vmap(_uniform)(keys).astype(logits.dtype)
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.are_all_axes_manual:
    return _sample_columns(logits, uniform, sampling, VocabShard(0, vocab_size))
  spec = sharding.fitted_spec(
    mesh, ('batch', 'vocab'), logits.shape, sharding.current_rules()
  )
  axes = sharding.mesh_axes_of(spec[1])

  def on_device(
    logits: Float[Array, 'S V'],
    uniform: Float[Array, ' S'],
    sampling: Sampling,
  ) -> tuple[Array, Array, Array]:
    first = jax.lax.axis_index(axes) * logits.shape[1] if axes else 0
    shard = VocabShard(first, vocab_size, axes)
    return _sample_columns(logits, uniform, sampling, shard)

  row_spec = P(spec[0])
  return jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(spec, row_spec, row_spec),
    out_specs=row_spec,
    check_vma=False,
  )(logits, uniform, sampling)


def policy_logprob(
  logits: Float[Array, 'S V'],
  token: Int[Array, ' S'],
  sampler_logprob: Float[Array, ' S'],
  temperature: Float[Array, '*S'],
) -> Float[Array, ' S']:
  """Log-probabilities of tokens at temperature 1, in nats.

  Args:
    logits: logits of the tokens.
    token: the tokens.
    sampler_logprob: their log-probabilities at `temperature`, which are returned
      if it is 0 or 1; see `sample_token`.
    temperature: temperature of each row.
  """
  is_known = (temperature == 0) | (temperature == 1)

  def compute() -> Float[Array, ' S']:
    is_token = jnp.arange(logits.shape[1]) == token[:, None]
    token_logit = jnp.sum(jnp.where(is_token, logits, 0), axis=1)
    return token_logit - jax.scipy.special.logsumexp(logits, axis=1)

  computed = jax.lax.cond(jnp.all(is_known), lambda: sampler_logprob, compute)
  return jnp.where(is_known, sampler_logprob, computed)


def _sample_columns(
  logits: Float[Array, 'S V'],
  uniform: Float[Array, ' S'],
  sampling: Sampling,
  shard: VocabShard,
) -> tuple[Int[Array, ' S'], Float[Array, ' S'], Float[Array, ' S']]:
  """`sample_token` on one device, which may hold a part of the columns."""
  is_greedy = sampling.temperature == 0
  scale = 1 / jnp.where(is_greedy, 1, sampling.temperature)
  scale = scale.astype(logits.dtype)[:, None]
  blocks = _to_blocks(logits)
  # Barriers keep XLA from reducing the large array again for sums of sums.
  block_peaks = jax.lax.optimization_barrier(jnp.max(blocks, axis=2))
  all_peaks = _gather(block_peaks, shard)
  peak = jnp.max(all_peaks, axis=1)
  # First the difference: a fused product and difference could be positive.
  weights = jnp.exp((blocks - peak[:, None, None]) * scale[:, None])
  block_sums = jax.lax.optimization_barrier(jnp.sum(weights, axis=2))

  def truncate() -> tuple[Threshold, Float[Array, 'S N']]:
    # Some rows at a time: the search has several arrays of their logits' size.
    groups = _num_groups(logits.shape)
    rows: Any = jax.tree.map(
      lambda x: x.reshape(groups, -1, *x.shape[1:]),
      (logits, scale, peak, sampling),
    )

    def truncate_group(group: Any) -> tuple[Threshold, Float[Array, 'S N']]:
      return _truncate(*group, shard=shard)

    group_results = jax.lax.map(truncate_group, rows)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), group_results)

  # Rows that do not truncate are the same to the bit with and without others.
  truncates = sampling.truncates(shard.vocab_size)
  keep_all = Threshold(
    jnp.full_like(peak, -jnp.inf),
    jnp.full(peak.shape, shard.vocab_size, jnp.int32),
  )
  with jax.named_scope(TRUNCATION_SCOPE):
    threshold, kept_sums = jax.lax.cond(
      jnp.any(truncates), truncate, lambda: (keep_all, block_sums)
    )
    threshold = Threshold(
      *(
        jnp.where(truncates, *pair)
        for pair in zip(threshold, keep_all, strict=True)
      )
    )
    kept_sums = jnp.where(truncates[:, None], kept_sums, block_sums)
  all_sums, all_kept = _gather(block_sums, shard), _gather(kept_sums, shard)

  # The block that has the likeliest token or where the cumulative sum passes u.
  mass = jnp.where(is_greedy[:, None], all_peaks == peak[:, None], all_kept)
  uniform = jnp.where(is_greedy, 0, uniform)
  block, remaining = _invert_cdf(mass, uniform * jnp.sum(mass, axis=1))
  local_blocks = blocks.shape[1]
  is_on_shard = block // local_blocks == _shard_index(shard)
  local_block = block % local_blocks
  block_logits = jnp.take_along_axis(blocks, local_block[:, None, None], axis=1)
  block_logits = (block_logits[:, 0] - peak[:, None]) * scale
  if shard.axes:
    block_logits = shard.sum(jnp.where(is_on_shard[:, None], block_logits, 0))

  # The token within it.
  columns_per_shard = logits.shape[1]
  width = blocks.shape[2]
  first = block // local_blocks * columns_per_shard + local_block * width
  ids = first[:, None] + jnp.arange(width, dtype=jnp.int32)
  kept = threshold.keeps(block_logits, ids)
  is_kept = jnp.where(is_greedy[:, None], block_logits == 0, kept)
  weight = jnp.where(is_kept, jnp.exp(block_logits), 0)
  index, _ = _invert_cdf(weight, remaining)
  logit = jnp.take_along_axis(block_logits, index[:, None], axis=1)[:, 0]
  # Of logits that are NaN, the last column of a block may be found, of padding.
  token = jnp.minimum(first + index, shard.vocab_size - 1)
  return (
    token.astype(jnp.int32),
    logit - jnp.log(jnp.sum(all_sums, axis=1)),
    logit - jnp.log(jnp.sum(all_kept, axis=1)),
  )


def _num_groups(shape: tuple[int, ...]) -> int:
  """Number of equal groups of rows that truncation processes one by one."""
  rows, columns = shape
  if rows * columns <= _MAX_UNGROUPED_LOGITS:
    return 1
  max_groups = max(min(_MAX_GROUPS, rows // _MIN_ROWS), 1)
  return max(n for n in range(1, max_groups + 1) if rows % n == 0)


def _truncate(
  logits: Float[Array, 'S V'],
  scale: Float[Array, 'S 1'],
  peak: Float[Array, ' S'],
  sampling: Sampling,
  shard: VocabShard,
) -> tuple[Threshold, Float[Array, 'S N']]:
  """Threshold of each row, and the sum of the kept weights of each block.

  Args:
    logits: logits of the next token.
    scale: inverse temperature.
    peak: the largest logit.
    sampling: truncation.
    shard: the part of the vocabulary that `logits` has.
  """
  scaled = (logits - peak[:, None]) * scale
  threshold = find_threshold(
    scaled,
    top_p=sampling.top_p.astype(logits.dtype),
    top_k=sampling.top_k,
    min_p=sampling.min_p.astype(logits.dtype),
    shard=shard,
  )
  kept = threshold.keeps(scaled, shard.ids(scaled.shape[1]))
  weights = jnp.where(kept, jnp.exp(scaled), 0)
  return threshold, jnp.sum(_to_blocks(weights, 0), axis=2)


def _invert_cdf(
  weights: Float[Array, 'S N'], target: Float[Array, ' S']
) -> tuple[Int[Array, ' S'], Float[Array, ' S']]:
  """Finds the first entry whose cumulative sum exceeds the target.

  An entry of weight 0 is never found, also where rounding lets no cumulative
  sum exceed the target: then it is the last entry of positive weight.

  Returns:
    Its index, and the target minus the sum of the entries before, at least 0.
  """
  cumulative = jnp.cumsum(weights, axis=1)
  positive = weights > 0
  passes = positive & (cumulative > target[:, None])
  last = weights.shape[1] - 1 - jnp.argmax(positive[:, ::-1], axis=1)
  index = jnp.where(passes.any(axis=1), jnp.argmax(passes, axis=1), last)
  sum_before = jnp.take_along_axis(cumulative - weights, index[:, None], axis=1)
  return index, jnp.maximum(target - sum_before[:, 0], 0)


def _to_blocks(x: Array, padding: Any = -jnp.inf) -> Array:
  """Splits columns `[S, V]` into blocks `[S, N, width]`, the last one padded."""
  width = block_width(x.shape[1])
  padded = jnp.pad(
    x, ((0, 0), (0, -x.shape[1] % width)), constant_values=padding
  )
  return padded.reshape(x.shape[0], -1, width)


def block_width(columns: int) -> int:
  """Tokens per block: `BLOCK`, or on CPUs a near divisor of many columns.

  A multiple of 16 from half to twice `BLOCK`. Accelerators need `BLOCK`.

  Args:
    columns: columns of a device.

  >>> block_width(151_936), block_width(152_000), block_width(100)
  (128, 160, 128)
  """
  if columns < _LARGE_VOCABULARY or sharding.platform() != 'cpu':
    return BLOCK
  widths = (BLOCK, *range(2 * BLOCK, BLOCK // 2 - 1, -16))
  return next((width for width in widths if columns % width == 0), BLOCK)


def _gather(x: Float[Array, 'S N'], shard: VocabShard) -> Float[Array, 'S M']:
  """Joins the sums of all devices' blocks, in the order of the vocabulary."""
  if not shard.axes:
    return x
  return jax.lax.all_gather(x, shard.axes, axis=1, tiled=True)


def _shard_index(shard: VocabShard) -> Int[Array, ''] | int:
  """Index of this device among those that split the vocabulary."""
  return jax.lax.axis_index(shard.axes) if shard.axes else 0


def _uniform(key: Key[Array, '']) -> Float[Array, '']:
  """A multiple of 2^−24 in [0, 1)."""
  bits = jax.random.bits(key, (), jnp.uint32) >> jnp.uint32(8)
  return bits.astype(jnp.float32) * 2.0**-24
