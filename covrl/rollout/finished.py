# SPDX-License-Identifier: Apache-2.0
"""Finished responses, found on the host while the device decodes others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from covrl.rollout.samples import Samples
from covrl.rollout.slots import State

# Receives row and tokens of a finished response.
OnResponse = Callable[[int, list[int]], object]


class SlotTokens(NamedTuple):
  """New tokens of one call of a program, by step and slot.

  Attributes:
    request: the slot's request within its shard; out of range if it has none.
    position: index of the token in the response.
    token: the token.
  """

  request: Int[Array, 'N S']
  position: Int[Array, 'N S']
  token: Int[Array, 'N S']


def first_tokens(state: State) -> SlotTokens:
  """The first tokens of all requests, as those of a step with a slot each."""
  token = state.samples.response_tokens[:, :1].T
  index_in_shard = jnp.arange(token.size, dtype=jnp.int32) % (
    token.size // state.shards
  )
  return SlotTokens(index_in_shard[None], jnp.zeros_like(token), token)


class FinishedResponses:
  """Joins the tokens of each request until its response is finished.

  Args:
    exists: whether each row has a request; others have no tokens.
    end_ids: tokens that end a response.
    max_length: maximum number of tokens of a response.
    shards: number of equal parts of rows and slots.
    carried: responses to continue, if any; see `SamplingEngine.sample`.
  """

  def __init__(
    self,
    exists: Bool[np.ndarray, ' R'],
    end_ids: Sequence[int],
    max_length: int,
    shards: int,
    carried: Samples | None = None,
  ) -> None:
    self._end_ids, self._shards = list(end_ids), shards
    self._tokens = np.zeros((len(exists), max_length), np.int32)
    # First tokens are reported for all rows.
    self._samples_first_token = exists
    if carried is not None:
      self._tokens[:] = np.asarray(carried.response_tokens)
      self._samples_first_token = (
        exists & ~np.asarray(carried.response_mask)[:, 0]
      )

  def add(self, new: SlotTokens) -> Iterator[tuple[int, list[int]]]:
    """Adds new tokens; yields rows and tokens of responses that they end."""
    new = jax.device_get(new)
    num_rows, max_length = self._tokens.shape
    rows_per_shard, slots = num_rows // self._shards, new.token.shape[1]
    shard = np.arange(slots) // (slots // self._shards)
    row = np.minimum(new.request, rows_per_shard - 1) + shard * rows_per_shard
    is_new = (new.position > 0) | self._samples_first_token[row]
    has_token = (new.request < rows_per_shard) & is_new
    self._tokens[row[has_token], new.position[has_token]] = new.token[has_token]
    is_end = np.isin(new.token, self._end_ids)
    ended = has_token & (is_end | (new.position + 1 == max_length))
    for entry in zip(*np.nonzero(ended), strict=True):
      tokens = self._tokens[row[entry], : new.position[entry] + 1]
      yield int(row[entry]), tokens.tolist()
