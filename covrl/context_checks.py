# SPDX-License-Identifier: Apache-2.0
"""Checks of the token statistics and context that losses and transforms receive."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from covrl.array_checks import Kind, check_array
from covrl.types import TokenContext, TokenMoments, TokenStats

# Kinds of the entries of a `TokenContext`: arrays `[B, T]`, and scalars.
_PER_TOKEN: Mapping[str, Kind] = {
  'advantages': 'real',
  'old_logprobs': 'real',
  'old_entropy': 'real',
  'mask': 'bool',
  'weights': 'real',
  'segment_ids': 'int',
  'sequence_ids': 'int',
  'positions': 'int',
  'sampler_logprobs': 'real',
  'ref_logprobs': 'real',
  'score_weight': 'real',
  'clipped': 'bool',
  'selected': 'bool',
}
_SCALARS: Mapping[str, Kind] = {
  'step': 'int',
  'entropy': 'real',
  'entropy_change': 'real',
  'log_ratio_noise': 'real',
}
_MOMENTS = ('moments', 'old_moments')


def check_stats(
  name: str,
  stats: object,
  function_name: str,
  shape: tuple[int, ...] | None = None,
) -> None:
  """Refuses anything but per-token statistics `[B, T]` of one shape.

  Args:
    name: the argument's name, for errors.
    stats: statistics, or their cotangents.
    function_name: name of the function that was called, for errors.
    shape: required shape; `None` for that of the log-probabilities.

  Raises:
    TypeError: it is not a `TokenStats` of floats.
    ValueError: a shape is another one.

  >>> check_stats('stats', jnp.zeros((4, 8)), 'cispo')
  Traceback (most recent call last):
    ...
  TypeError: stats of cispo must be a TokenStats, got ArrayImpl
  """
  if not isinstance(stats, TokenStats):
    raise TypeError(
      f'{name} of {function_name} must be a TokenStats, got {type(stats).__name__}'
    )
  for leaf in ('logprobs', 'entropy', 'divergence', 'top_entropy'):
    value = getattr(stats, leaf)
    if value is not None:
      shape = check_array(f'{name}.{leaf}', value, 'float', 'B T', shape)


def check_context(
  context: Mapping[str, object],
  function_name: str,
  stats: TokenStats | None = None,
) -> None:
  """Refuses entries that are not in `TokenContext`, or of another shape.

  Args:
    context: keyword arguments of a loss or a token transform.
    function_name: name of the function that was called, for the error.
    stats: statistics whose shape `[B, T]` all per-token entries must have;
      `None` checks names only.

  Raises:
    TypeError: for an unknown entry (names the nearest known one), or an entry
      of another dtype.
    ValueError: for an entry of another shape.

  >>> check_context({'advantage': 1.0}, 'kl_cov')
  Traceback (most recent call last):
    ...
  TypeError: the context of kl_cov must have entries of TokenContext only, got
  'advantage'; did you mean 'advantages'?
  """
  known = TokenContext.__annotations__
  for entry in context:
    if entry not in known:
      nearest = difflib.get_close_matches(entry, known, n=1)
      hint = (
        f'did you mean {nearest[0]!r}?'
        if nearest
        else f'known entries: {", ".join(sorted(known))}'
      )
      raise TypeError(
        f'the context of {function_name} must have entries of TokenContext only, got'
        f' {entry!r}; {hint}'
      )
  if stats is None:
    return
  shape = jnp.shape(stats.logprobs)
  for entry, value in context.items():
    if value is None:
      continue
    if entry in _PER_TOKEN:
      check_array(entry, value, _PER_TOKEN[entry], 'B T', shape)
    elif entry in _SCALARS:
      check_array(entry, value, _SCALARS[entry], '')
    elif entry in _MOMENTS:
      check_moments(entry, value, shape)
    elif entry == 'key':
      check_key(value)


def check_moments(entry: str, moments: object, shape: tuple[int, ...]) -> None:
  """Refuses anything but moments of the shape of the statistics.

  Args:
    entry: name of the argument, for errors.
    moments: moments of the policy.
    shape: shape `[B, T]` of the statistics.

  Raises:
    TypeError: it is not a `TokenMoments` of numbers.
    ValueError: a shape is another one.
  """
  if not isinstance(moments, TokenMoments):
    raise TypeError(
      f'{entry} must be a TokenMoments, got {type(moments).__name__}'
    )
  for field in dataclasses.fields(TokenMoments):
    moment = getattr(moments, field.name)
    if moment is not None or field.default is dataclasses.MISSING:
      check_array(f'{entry}.{field.name}', moment, 'real', 'B T', shape)


def check_key(key: Any) -> None:
  """Refuses anything but a single PRNG key, typed or of two words or more.

  Raises:
    TypeError: it is something else.
  """
  dtype = getattr(key, 'dtype', None)
  if dtype is None:
    raise TypeError(
      f'key must be a PRNG key, such as jax.random.key(0), got {key!r:.80}'
    )
  axes = 0 if jnp.issubdtype(dtype, jax.dtypes.prng_key) else 1
  if jnp.ndim(key) != axes or (axes and dtype != jnp.uint32):
    raise TypeError(
      'key must be a single PRNG key, such as jax.random.key(0), got'
      f' {dtype}{list(jnp.shape(key))}'
    )
