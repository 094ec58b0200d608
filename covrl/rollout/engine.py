# SPDX-License-Identifier: Apache-2.0
"""Sampling engine: prompts to responses, on the trainer's mesh and parameters.

Every unique prompt is processed once, and its keys and values are shared by all
responses to it. Responses are decoded in a fixed number of slots, which are
refilled from a queue on the device. After each segment of tokens, which is one
compiled call, the host reduces the number of slots if the queue is empty. It calls
the next segment before it reads the last one's result, so that the device does not
wait for the host, except where that result is likely to allow fewer slots.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, Key, PyTree

from covrl.array_checks import check_array, check_at_least
from covrl.models.experts import ExpertRecordSpec
from covrl.models.policy import Policy
from covrl.parallel import distributed, sharding
from covrl.rollout.caching import EXACT_CACHING, Caching
from covrl.rollout.carried import check_carried
from covrl.rollout.decoder import SlotDecoder
from covrl.rollout.finished import FinishedResponses, OnResponse
from covrl.rollout.layout import Layout, divide_requests
from covrl.rollout.placement import placer
from covrl.rollout.programs import (
  Report,
  SamplerPrograms,
  TracedPrograms,
  row_sharding,
)
from covrl.rollout.samples import (
  AnyArray,
  Samples,
  check_prompts,
  check_sequence_ids,
  empty_samples,
)
from covrl.rollout.sampling import Sampling
from covrl.rollout.schedule import SegmentSchedule
from covrl.rollout.slots import State


class SamplingEngine:
  """Samples responses with a policy's current parameters.

  A few programs are compiled per shape of prompts and group size; sampling
  parameters are traced. A response depends on its prompt, the key and its
  sequence id, and not on other responses, its row, or the mesh: to the bit for
  fixed numbers of prompts and slots on one mesh, else up to rounding.

  Attributes:
    policy: the model to sample from.
    mesh: mesh over which rows are split; `None` is the default device.
    end_ids: tokens that end a response.
    pad_id: token that fills the rest of a row. If the policy samples it, it
      counts like any other token.
    max_response_length: maximum number of tokens of a response.
    slots: responses that are decoded together, at most; 0 for all.
    segment: tokens of each response that one compiled call decodes.
    experts: shape and dtype of the record of experts, for routing replay; `None`
      if experts are not recorded.
    caching: options of the KV cache and of prefill.
  """

  def __init__(
    self,
    policy: Policy,
    mesh: Mesh | None = None,
    *,
    end_ids: Sequence[int],
    pad_id: int,
    max_response_length: int,
    slots: int = 0,
    segment: int = 16,
    record_experts: bool = False,
    caching: Caching = EXACT_CACHING,
  ) -> None:
    """Checks the arguments; see the attributes.

    Raises:
      ValueError: if an id is not in the vocabulary, a number is too small, or
        the model has no experts to record.
    """
    check_at_least(0, slots=slots)
    check_at_least(1, segment=segment)
    self.policy = policy
    self.mesh = mesh
    self.end_ids = tuple(end_ids)
    self.pad_id = pad_id
    self.max_response_length = max_response_length
    self.slots = slots
    self.segment = min(segment, max(max_response_length - 1, 1))
    self.experts = (
      ExpertRecordSpec.of(policy.config) if record_experts else None
    )
    self.caching = caching
    decoder = SlotDecoder(
      policy,
      self.end_ids,
      pad_id,
      max_response_length,
      experts=self.experts,
      caching=caching,
    )
    self._programs = SamplerPrograms(decoder, mesh, self.segment)
    self._start, self._run = self._programs.start, self._programs.run
    self._shrink = self._programs.shrink
    self._place_params = placer(policy, mesh)

  def sample(
    self,
    params: PyTree,
    prompts: Int[AnyArray, 'P Tp'],
    prompt_mask: Bool[AnyArray, 'P Tp'],
    *,
    group_size: int,
    key: Key[Array, ''],
    sequence_ids: Int[AnyArray, ' S'],
    sampling: Sampling,
    on_progress: Callable[[int], object] = lambda num_finished: None,
    on_response: OnResponse | None = None,
    carried: Samples | None = None,
    is_enough: Callable[[], bool] | None = None,
  ) -> Samples:
    """Samples `group_size` responses to each prompt.

    Args:
      params: parameters of the policy.
      prompts: token ids, padded on the left. A row without any real token is
        padding, and its responses are empty.
      prompt_mask: true for real tokens.
      group_size: responses per prompt.
      key: PRNG key of the iteration. Token `t` of a sequence is drawn with
        `fold_in(fold_in(key, sequence_id), t)`.
      sequence_ids: unique within the iteration, one per response.
      sampling: temperature and truncation, the same for all responses.
      on_progress: called after each segment with a lower bound of the number of
        finished responses.
      on_response: called with row and tokens of each response once it is
        finished, while the device decodes the next segment.
      carried: responses of an earlier call with `is_enough`, in the same rows,
        to continue; rows without tokens begin new ones. Their tokens are
        processed again, with the given parameters.
      is_enough: called after `on_response`; the rest stays unfinished if it
        returns true.

    Returns:
      Rows in the order of the prompts, split over the mesh if its size divides
      their number, else replicated.

    Raises:
      TypeError: if an argument is of another type or dtype.
      ValueError: if the ids are not one per response or a group has one twice,
        `group_size` < 1, or the prompts, carried responses or sampling
        parameters are refused by `check_prompts`, `check_carried` or
        `Sampling.check`.
    """
    check_prompts(prompts, prompt_mask, self.policy.config.vocab_size)
    check_array('group_size', group_size, 'int', '')
    if group_size < 1:
      raise ValueError(f'group_size must be at least 1, got {group_size}')
    num_responses = len(prompts) * group_size
    check_sequence_ids(sequence_ids, prompt_mask, group_size)
    sampling.check()
    layout = self._layout(len(prompts), group_size)
    if carried is not None:
      check_carried(
        carried,
        np.asarray(prompt_mask).any(axis=1).repeat(group_size),
        self._carried_template(num_responses, prompts.shape[1]),
        vocab_size=self.policy.config.vocab_size,
        end_ids=self.end_ids,
        layout=layout,
      )
    finished_responses = None
    if on_response is not None:
      exists = np.asarray(prompt_mask).any(axis=1).repeat(group_size)
      finished_responses = FinishedResponses(
        exists, self.end_ids, self.max_response_length, layout.shards, carried
      )
    with self._use_mesh():
      params, state, report = self._begin(
        params,
        prompts,
        prompt_mask,
        key,
        sequence_ids,
        sampling,
        carried,
        layout,
      )
      schedule = SegmentSchedule(
        layout,
        segments=-(-(self.max_response_length - 1) // self.segment),
        ahead=1 if is_enough is None else 0,
      )
      reports, slots = deque([report]), layout.slots[0]

      def start_segments(live: int, waiting: int) -> None:
        nonlocal state, slots
        for needed_slots in schedule.next_slots(live, waiting, len(reports)):
          if needed_slots < slots:
            slots = needed_slots
            state = state.with_slots(self._shrink(state, layout, slots))
          state, started_report = self._run(params, state, layout)
          reports.append(started_report)

      # Before the first result is read, all slots count as live.
      start_segments(slots, 0)
      is_finished = False
      while not is_finished:
        report = reports.popleft()
        live, waiting = _wait_for_status(report.status, is_urgent=not reports)
        on_progress(num_responses - layout.shards * (live + waiting))
        is_finished = live + waiting == 0
        start_segments(live, waiting)
        # The device decodes the next segment meanwhile.
        if finished_responses is not None and on_response is not None:
          for row, response in finished_responses.add(report.tokens):
            on_response(row, response)
        if is_enough is not None:
          is_finished = is_finished or is_enough()
      return state.samples

  def warm_up(
    self,
    params: PyTree,
    shape: tuple[int, int],
    *,
    group_size: int,
    carries: bool = False,
  ) -> None:
    """Compiles and runs all programs of `sample` once, on padding.

    Args:
      params: parameters of the policy.
      shape: number of prompts and their padded length in tokens.
      group_size: responses per prompt.
      carries: whether `carried` will be given.
    """
    layout, sampling = self._layout(shape[0], group_size), Sampling.make()
    # Created outside the mesh, like the arguments of `sample`.
    key = jax.random.key(0)
    carried = None
    if carries:
      template = self._carried_template(shape[0] * group_size, shape[1])
      carried = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), template)
    with self._use_mesh():
      params, state, _ = self._begin(
        params,
        np.full(shape, self.pad_id, np.int32),
        np.zeros(shape, bool),
        key,
        np.arange(shape[0] * group_size, dtype=np.int32),
        sampling,
        carried,
        layout,
      )
      for slots in layout.slots:
        if slots != layout.slots[0]:
          state = state.with_slots(self._shrink(state, layout, slots))
        if self.max_response_length > 1:
          state, _ = self._run(params, state, layout)

  def trace(
    self, params: PyTree, count: int, width: int, *, group_size: int
  ) -> TracedPrograms:
    """Traces the programs of `sample` for given shapes, without arrays.

    Args:
      params: shapes and shardings of the policy's parameters.
      count: number of prompts.
      width: padded length of a prompt, in tokens.
      group_size: responses per prompt.
    """
    layout = self._layout(count, group_size)
    with self._use_mesh():
      return self._programs.trace(params, (count, width), group_size, layout)

  def _begin(
    self,
    params: PyTree,
    prompts: Int[AnyArray, 'P Tp'],
    prompt_mask: Bool[AnyArray, 'P Tp'],
    key: Key[Array, ''],
    sequence_ids: Int[AnyArray, ' S'],
    sampling: Sampling,
    carried: Samples | None,
    layout: Layout,
  ) -> tuple[PyTree, State, Report]:
    """Places the arguments of `sample` and runs the first program."""
    params = self._place_params(params)
    state, report = self._start(
      params,
      self._put_on_mesh(np.repeat(prompts, layout.shards_per_prompt, axis=0)),
      self._put_on_mesh(
        np.repeat(prompt_mask, layout.shards_per_prompt, axis=0)
      ),
      key,
      self._put_on_mesh(sequence_ids),
      sampling,
      *([] if carried is None else [jax.tree.map(self._put_on_mesh, carried)]),
      layout=layout,
    )
    return params, state, report

  def _carried_template(self, rows: int, width: int) -> Samples:
    """Shapes and dtypes of the responses to prompts of a width in tokens."""
    experts, length = self.experts, self.max_response_length

    def make() -> Samples:
      return empty_samples(
        (rows, length),
        self.pad_id,
        self.policy.config.stats_dtype,
        None
        if experts is None
        else jnp.zeros(experts.shape(rows, width + length), experts.dtype),
      )

    return jax.eval_shape(make)

  def _layout(self, count: int, group_size: int) -> Layout:
    """Division of the requests of `count` prompts over the mesh."""
    return divide_requests(
      self.mesh,
      count,
      group_size,
      slots=self.slots,
      shrinks=self.segment < self.max_response_length - 1,
    )

  def _use_mesh(self) -> contextlib.AbstractContextManager[object]:
    """Context in which activations are constrained to the mesh."""
    return sharding.use_mesh(self.mesh, sharding.ROLLOUT_RULES)

  def _put_on_mesh(self, rows: AnyArray) -> Array:
    """Puts rows on the mesh, split if its size divides their number."""
    rows_sharding = row_sharding(self.mesh, rows.shape)
    if rows_sharding is None:
      return jax.device_put(rows)
    return distributed.put_global(rows, rows_sharding)


def _wait_for_status(status: Any, *, is_urgent: bool) -> tuple[int, int]:
  """Waits for the numbers of live slots and of waiting requests of a shard.

  Args:
    status: the result of a call.
    is_urgent: whether no other program is queued on the device.
  """
  if distributed.process_count() == 1:
    poll_fraction = 1 / 16 if is_urgent else 1 / 4
    distributed.wait_until(status.is_ready, poll_fraction=poll_fraction)
  live, waiting = np.asarray(status).tolist()
  return live, waiting
