# SPDX-License-Identifier: Apache-2.0
"""Engine for requests that arrive one by one, each with its own options.

Requests wait on the host until a row is free; then their prompts are processed
together with others of about the same length, and they join the device's queue.
Between two segments of decoding the host reads the new tokens, admits waiting
requests and removes cancelled ones. All programs have fixed shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, PyTree

from covrl.array_checks import check_at_least, check_integer
from covrl.models.policy import Policy
from covrl.rollout.admission import Admission, Rows, Sizes, WaitingRequests
from covrl.rollout.caching import EXACT_CACHING, Caching
from covrl.rollout.decoder import SlotDecoder
from covrl.rollout.layout import count_shards
from covrl.rollout.placement import placer
from covrl.rollout.requests import Limits, NewTokens, Request
from covrl.rollout.samples import SampledTokens
from covrl.rollout.slot_programs import SlotPrograms
from covrl.rollout.slots import State, cancel

# Widths of the programs that process prompts, below the largest.
PROMPT_WIDTHS = (64, 256, 1024)
# Prompts of a shard that are processed together.
MAX_ADMITTED_PROMPTS = 4
# Rows for requests, waiting on the device included, per slot.
ROWS_PER_SLOT = 2


class RequestEngine:
  """Samples responses to requests that are added and cancelled at any time.

  A response depends on its request and not on others, to the bit for a fixed
  number of slots. Not thread-safe.

  Attributes:
    limits: limits of requests.
    slots: responses that are decoded together.
    segment: tokens of each response that one call of `step` samples, at most.
  """

  def __init__(
    self,
    policy: Policy,
    params: PyTree,
    mesh: Mesh | None = None,
    *,
    end_ids: Sequence[int],
    pad_id: int,
    max_prompt_length: int,
    max_response_length: int,
    slots: int = 16,
    segment: int = 16,
    max_stop_ids: int = 8,
    prompt_widths: Sequence[int] = PROMPT_WIDTHS,
    caching: Caching = EXACT_CACHING,
  ) -> None:
    """Creates the caches, and compiles all programs.

    Args:
      policy: the model to sample from.
      params: parameters of the policy.
      mesh: mesh over which rows are split; `None` is the default device.
      end_ids: tokens that end every response.
      pad_id: token that fills rows.
      max_prompt_length: tokens of a prompt, at most.
      max_response_length: tokens of a response, at most.
      slots: responses that are decoded together; rounded up to a multiple of
        the devices that split rows.
      segment: tokens of each response that a step samples, at most.
      max_stop_ids: stop ids of a request, at most.
      prompt_widths: widths of programs for shorter prompts than the longest, in
        ascending order.
      caching: options of the KV cache and of prefill.

    Raises:
      ValueError: if an id is not in the vocabulary, or a number is too small.
    """
    check_at_least(
      1, max_prompt_length=max_prompt_length, slots=slots, segment=segment
    )
    check_at_least(0, max_stop_ids=max_stop_ids)
    self._shards = count_shards(mesh)
    self.segment = min(segment, max(max_response_length - 1, 1))
    self.limits = Limits(
      policy.config.vocab_size,
      max_prompt_length,
      max_response_length,
      max_stop_ids,
    )
    self._decoder = SlotDecoder(
      policy,
      tuple(end_ids),
      pad_id,
      max_response_length,
      computes_policy_logprobs=True,
      caching=caching,
    )
    self._programs = SlotPrograms(self._decoder, mesh, self.segment)
    slots_per_shard = -(-slots // self._shards)
    self.slots = slots_per_shard * self._shards
    width = -(-max_prompt_length // 8) * 8
    sizes = Sizes(
      prompts=ROWS_PER_SLOT * slots_per_shard,
      width=width,
      requests=ROWS_PER_SLOT * slots_per_shard,
      slots=slots_per_shard,
      stop_ids=max_stop_ids,
    )
    self._widths = (*(w for w in prompt_widths if w < width), width)
    self._waiting = WaitingRequests(self._widths)
    self._rows = Rows(
      sizes, self._shards, batch=MAX_ADMITTED_PROMPTS, pad_id=pad_id
    )
    self._cancelled: list[tuple[int, int]] = []
    self._num_submitted = 0
    self._cancel = jax.jit(self._cancel_requests, donate_argnums=0)
    with self._programs.use_mesh():
      self._params = placer(policy, mesh)(params)
      self._state = jax.jit(self._empty_state, static_argnums=1)(params, sizes)
      self._warm_up()

  @property
  def num_waiting(self) -> int:
    """Number of requests that have no row on the device yet."""
    return len(self._waiting)

  @property
  def num_running(self) -> int:
    """Number of requests on the device that are not cancelled."""
    return len(self._rows) - len(self._cancelled)

  def submit(self, request: Request) -> int:
    """Adds a request.

    Returns:
      The request's number, which identifies it; numbers ascend.

    Raises:
      TypeError: it is not a `Request`, or a part of it is of another type.
      ValueError: the request is not valid, see `Request.check`.
    """
    value: object = request
    if not isinstance(value, Request):
      raise TypeError(f'request must be a Request, got {value!r:.80}')
    request.check(self.limits)
    self._num_submitted += 1
    self._waiting.add(self._num_submitted, request)
    return self._num_submitted

  def cancel(self, number: int) -> None:
    """Removes a request; one that is finished is ignored.

    Raises:
      TypeError: the number is not an integer.
      ValueError: `submit` has not returned the number.
    """
    check_integer('number', number, 1, self._num_submitted)
    if self._waiting.remove(number):
      return
    shard_and_row = self._rows.find(number)
    if shard_and_row is not None and shard_and_row not in self._cancelled:
      self._cancelled.append(shard_and_row)

  def step(self) -> dict[int, NewTokens]:
    """Admits requests, and samples up to `segment` tokens of each response.

    Returns:
      New tokens by the number that `submit` returned, of requests that have any.
    """
    with self._programs.use_mesh():
      self._remove_cancelled()
      admitted: list[tuple[Admission, SampledTokens]] = []
      while (admission := self._rows.admit(self._waiting)) is not None:
        self._state, first_step = self._programs.admit(
          self._params, self._state, admission
        )
        admitted.append((admission, first_step))
      decoded_segment: SampledTokens | None = None
      if self._rows and self.limits.response_length > 1:
        self._state, decoded_segment = self._programs.run(
          self._params, self._state
        )
      first_steps, decoded_segment = jax.device_get(
        ([x for _, x in admitted], decoded_segment)
      )
    new_tokens: dict[int, NewTokens] = {}
    for (admission, _), first_step in zip(admitted, first_steps, strict=True):
      for index, shard, row in self._rows.admitted(admission):
        self._append(new_tokens, shard, row, first_step, index)
    if decoded_segment is not None:
      for index, shard, row in self._token_indices(decoded_segment):
        self._append(new_tokens, shard, row, decoded_segment, index)
    return new_tokens

  def _token_indices(
    self, step: SampledTokens
  ) -> Iterator[tuple[tuple[int, int], int, int]]:
    """Yields index, shard and row of each token of a segment, in order."""
    slots_per_shard = self.slots // self._shards
    request = np.asarray(step.request)
    occupied = np.argwhere(request < self._rows.sizes.requests)
    for index, slot in occupied.tolist():
      yield (index, slot), slot // slots_per_shard, int(request[index, slot])

  def _append(
    self,
    new_tokens: dict[int, NewTokens],
    shard: int,
    row_index: int,
    step: SampledTokens,
    index: int | tuple[int, int],
  ) -> None:
    """Adds one token to those of a step; frees the row of a finished request."""
    row = self._rows.get(shard, row_index)
    if row is None:
      raise RuntimeError(
        f'row {row_index} of shard {shard} must have a request, got none'
      )
    response_tokens = new_tokens.setdefault(
      row.number, NewTokens([], [], [], None)
    )
    token = int(step.token[index])
    response_tokens.tokens.append(token)
    assert step.policy_logprob is not None
    response_tokens.policy_logprobs.append(float(step.policy_logprob[index]))
    response_tokens.sampling_logprobs.append(
      float(step.behaviour_logprob[index])
    )
    row.length += 1
    if token in self._decoder.end_ids or token in row.request.stop_ids:
      new_tokens[row.number] = response_tokens._replace(finish_reason='stop')
    elif row.length == row.request.max_tokens:
      new_tokens[row.number] = response_tokens._replace(finish_reason='length')
    else:
      return
    self._rows.release((shard, row_index))

  def _remove_cancelled(self) -> None:
    """Removes cancelled requests from the device."""
    if not self._cancelled:
      return
    mask = np.zeros((self._shards, self._rows.sizes.requests), bool)
    for shard_and_row in self._cancelled:
      mask[shard_and_row] = True
      self._rows.release(shard_and_row)
    self._cancelled.clear()
    self._state = self._cancel(self._state, mask.reshape(-1))

  def _warm_up(self) -> None:
    """Compiles and runs all programs without requests."""
    for width in self._widths:
      no_requests = self._rows.empty_admission(width)
      self._state, _ = self._programs.admit(
        self._params, self._state, no_requests
      )
    if self.limits.response_length > 1:
      self._state, _ = self._programs.run(self._params, self._state)
    not_cancelled = np.zeros(self._shards * self._rows.sizes.requests, bool)
    self._state = self._cancel(self._state, not_cancelled)

  def _empty_state(self, params: PyTree, sizes: Sizes) -> State:
    """The program that creates the caches."""
    return self._programs.constrained(
      self._decoder.empty_state(params, sizes, self._shards)
    )

  def _cancel_requests(
    self, state: State, cancelled: Bool[Array, ' R']
  ) -> State:
    """The program that removes requests."""
    return self._programs.constrained(cancel(state, cancelled))
