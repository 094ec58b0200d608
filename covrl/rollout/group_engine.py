# SPDX-License-Identifier: Apache-2.0
"""Engine for groups of responses to prompts that are added while it decodes.

Dynamic sampling needs it: how many prompts an iteration needs is known only when
responses to the first are scored. Between two segments of decoding the host
reads the new tokens and adds prompts where slots are free.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, Key, PyTree

from covrl.array_checks import check_array, check_at_least, check_integer
from covrl.models.policy import Policy
from covrl.parallel import distributed
from covrl.rollout.admission import Admission, Sizes
from covrl.rollout.caching import EXACT_CACHING, Caching
from covrl.rollout.decoder import SlotDecoder
from covrl.rollout.group_rows import GroupResponse, GroupRows
from covrl.rollout.layout import Layout, count_shards, state_specs
from covrl.rollout.placement import (
  abstract_on_mesh,
  abstract_placed,
  placer,
  trace_placement,
)
from covrl.rollout.programs import TracedPrograms
from covrl.rollout.samples import (
  SampledTokens,
  check_prompts,
  check_sequence_ids,
)
from covrl.rollout.sampling import Sampling
from covrl.rollout.slot_programs import SlotPrograms
from covrl.rollout.slots import RequestOptions, State

# Prompts of a shard that are processed together.
MAX_ADMITTED_PROMPTS = 4


class _ProgramArguments(NamedTuple):
  """Arguments of the programs that remain between `begin` and `end`.

  Attributes:
    params: the policy's parameters, placed.
    key: PRNG key of the iteration.
    options: sampling and limit of all requests.
  """

  params: PyTree
  key: Key[Array, '']
  options: RequestOptions


class GroupEngine:
  """Samples groups of responses; prompts are added between segments.

  A response depends on its prompt, the key and its sequence id, and not on when
  it was added or on other responses, to the bit; it is that of `SamplingEngine`
  up to rounding. The number of slots is constant for that.

  Usage: `begin`, then in turn `read`, `add` while it `has_room`, and `run`,
  until the caller has enough; `end` frees the memory.

  Attributes:
    group_size: responses per prompt.
    slots: responses that are decoded together.
    segment: tokens of each response that `run` samples, at most.
  """

  def __init__(
    self,
    policy: Policy,
    mesh: Mesh | None = None,
    *,
    end_ids: Sequence[int],
    pad_id: int,
    prompts: int,
    prompt_width: int,
    max_response_length: int,
    group_size: int,
    slots: int = 0,
    segment: int = 16,
    caching: Caching = EXACT_CACHING,
  ) -> None:
    """Jits the programs.

    Args:
      policy: the model to sample from.
      mesh: mesh over which rows are split; `None` is the default device.
      end_ids: tokens that end a response.
      pad_id: token that fills rows.
      prompts: number of prompts whose keys and values are in memory; a few more
        are held for groups that wait for slots.
      prompt_width: padded length of a prompt, in tokens.
      max_response_length: tokens of a response, at most.
      group_size: responses per prompt.
      slots: responses that are decoded together, rounded up to a multiple of
        the devices that split rows; 0 for those of `prompts` prompts.
      segment: tokens of each response that one compiled call decodes.
      caching: options of the KV cache and of prefill.

    Raises:
      ValueError: if an id is not in the vocabulary, or a number is too small.
    """
    check_at_least(
      1,
      prompts=prompts,
      prompt_width=prompt_width,
      group_size=group_size,
      segment=segment,
    )
    check_at_least(0, slots=slots)
    self._shards = count_shards(mesh)
    self.group_size = group_size
    self.segment = min(segment, max(max_response_length - 1, 1))
    self._decoder = SlotDecoder(
      policy, tuple(end_ids), pad_id, max_response_length, caching=caching
    )
    self._programs = SlotPrograms(self._decoder, mesh, self.segment)
    slots_per_shard = -(-(slots or prompts * group_size) // self._shards)
    self.slots = slots_per_shard * self._shards
    prompts_per_shard = max(
      -(-prompts // self._shards), -(-slots_per_shard // group_size)
    )
    self._batch = min(MAX_ADMITTED_PROMPTS, prompts_per_shard)
    prompts_per_shard += self._batch
    self._sizes = Sizes(
      prompts=prompts_per_shard,
      width=prompt_width,
      requests=prompts_per_shard * group_size,
      slots=slots_per_shard,
      stop_ids=0,
    )
    self._rows = self._empty_rows()
    self._mesh = mesh
    self._place_params = placer(policy, mesh)
    self._empty = jax.jit(self._empty_state)
    self._arguments: _ProgramArguments | None = None
    self._state: State | None = None
    self._steps: Any = []

  def warm_up(self, params: PyTree) -> None:
    """Compiles and runs all programs once, on padding.

    Args:
      params: parameters of the policy.
    """
    # Created outside the mesh, like the arguments of `begin`.
    self.begin(params, key=jax.random.key(0), sampling=Sampling.make())
    self._dispatch([self._empty_admission()], decodes=True)
    self.end()

  def trace(self, params: PyTree) -> TracedPrograms:
    """Traces the programs without arrays.

    Args:
      params: shapes and shardings of the policy's parameters.
    """
    policy, mesh = self._decoder.policy, self._mesh
    key = jax.eval_shape(lambda: jax.random.key(0))
    options = jax.eval_shape(lambda: self._options(Sampling.make()))
    admission = self._empty_admission()._replace(options=options)
    with self._programs.use_mesh():
      placed = abstract_placed(policy, params, mesh)
      state = jax.eval_shape(self._empty_state, placed, options)
      state = abstract_on_mesh(
        mesh, state, state_specs(mesh, state, self._shards)
      )
      return TracedPrograms(
        place=trace_placement(policy, params, mesh),
        start=self._programs.admit.trace(placed, state, admission, key),
        prompts=self._shards * self._batch,
        run=self._programs.run.trace(placed, state),
        cache=state.cache,
        layout=Layout(
          shards_per_prompt=1, shards=self._shards, slots=(self._sizes.slots,)
        ),
      )

  def begin(
    self, params: PyTree, *, key: Key[Array, ''], sampling: Sampling
  ) -> None:
    """Starts an iteration; `add` gives it prompts.

    Args:
      params: parameters of the policy.
      key: PRNG key of the iteration. Token `t` of a sequence is drawn with
        `fold_in(fold_in(key, sequence_id), t)`.
      sampling: temperature and truncation.
    """
    self._rows, self._steps = self._empty_rows(), []
    self._numbers: set[int] = set()
    options = self._options(sampling)
    with self._programs.use_mesh():
      placed = self._place_params(params)
      self._state = self._empty(placed, options)
    self._arguments = _ProgramArguments(placed, key, options)

  def end(self) -> None:
    """Drops all requests and the cache."""
    self._arguments = self._state = None
    self._rows, self._steps = self._empty_rows(), []
    self._numbers = set()

  @property
  def has_room(self) -> bool:
    """Whether a group can be added that will not wait long for slots."""
    return self._rows.choose_shard() is not None

  @property
  def is_busy(self) -> bool:
    """Whether responses are unfinished."""
    return self._rows.num_unfinished > 0

  def add(
    self,
    number: int,
    prompt: Int[np.ndarray, ' W'],
    prompt_mask: Bool[np.ndarray, ' W'],
    sequence_ids: Int[np.ndarray, ' G'],
  ) -> None:
    """Adds a group; its prompt is processed by the next `run`.

    Args:
      number: number of the group, unique since `begin`, of at least 0.
      prompt: token ids, padded on the left.
      prompt_mask: true for real tokens; at least one is.
      sequence_ids: one per response, unique within the iteration.

    Raises:
      TypeError: an argument is of another type or dtype.
      ValueError: the prompt has no token or is refused by `check_prompts`, the ids
        are not one per response or not unique, or the number is not unique.
      RuntimeError: there is no room, or `begin` was not called.
    """
    if self._arguments is None:
      raise RuntimeError('begin must be called before add')
    check_integer('number', number, 0, 2**63 - 1)
    if number in self._numbers:
      raise ValueError(
        f'numbers of groups must be unique since begin, got {number} twice'
      )
    width, size = self._sizes.width, self.group_size
    check_array('prompt', prompt, 'int', 'W', (width,))
    check_array('prompt_mask', prompt_mask, 'bool', 'W', (width,))
    vocab_size = self._decoder.policy.config.vocab_size
    check_prompts(prompt[None], prompt_mask[None], vocab_size)
    check_sequence_ids(sequence_ids, prompt_mask[None], size)
    if not prompt_mask.any():
      raise ValueError(
        f'the prompt of group {number} must have at least one token, got 0'
      )
    self._rows.add(number, prompt, prompt_mask, sequence_ids)
    self._numbers.add(int(number))

  def run(self) -> None:
    """Starts processing new prompts, and one segment of decoding.

    Does nothing if all responses are finished.
    """
    admissions = []
    while (admission := self._rows.admit(self._empty_admission())) is not None:
      admissions.append(admission)
    if not admissions and not self.is_busy:
      return
    decodes = self._decoder.max_length > 1

    def start() -> list[SampledTokens]:
      return self._dispatch(admissions, decodes=decodes)

    if distributed.process_count() == 1:
      self._steps += start()
    else:
      self._steps += distributed.run_on_devices(start)

  def read(self) -> list[GroupResponse]:
    """Waits for the tokens of `run`.

    Returns:
      The responses that they end.
    """
    steps, self._steps = self._steps, []
    if distributed.process_count() == 1:
      steps = distributed.fetch(steps)
    return [response for step in steps for response in self._rows.record(step)]

  def _dispatch(
    self, admissions: Sequence[Admission], *, decodes: bool
  ) -> list[SampledTokens]:
    """Runs programs on the device; returns their tokens."""
    if self._arguments is None or self._state is None:
      raise RuntimeError('begin must be called before run')
    params, key, options = self._arguments
    steps = []
    with self._programs.use_mesh():
      for admission in admissions:
        self._state, step = self._programs.admit(
          params, self._state, admission._replace(options=options), key
        )
        steps.append(step)
      if decodes:
        self._state, step = self._programs.run(params, self._state)
        steps.append(step)
    return steps

  def _options(self, sampling: Sampling) -> RequestOptions:
    """Options of all requests."""
    limit = jnp.asarray(self._decoder.max_length, jnp.int32)
    return RequestOptions(sampling, limit, None)

  def _empty_rows(self) -> GroupRows:
    return GroupRows(
      self._sizes,
      self._shards,
      group_size=self.group_size,
      batch=self._batch,
      end_ids=self._decoder.end_ids,
      pad_id=self._decoder.pad_id,
      max_length=self._decoder.max_length,
      dtype=self._decoder.policy.config.stats_dtype,
    )

  def _empty_admission(self) -> Any:
    """An admission without prompts, to be filled in place."""
    prompts = self._shards * self._batch
    requests = prompts * self.group_size

    def rows(value: int, dtype: type, *shape: int) -> np.ndarray:
      return np.full(shape, value, dtype)

    width = self._sizes.width
    arrays: dict[str, Any] = {
      'prompts': rows(self._decoder.pad_id, np.int32, prompts, width),
      'prompt_mask': rows(0, bool, prompts, width),
      'prompt_row': rows(self._sizes.prompts, np.int32, prompts),
      'request_row': rows(self._sizes.requests, np.int32, requests),
      'prompt_index': rows(0, np.int32, requests),
      'seed': rows(0, np.uint32, requests),
      'sequence_id': rows(0, np.int32, requests),
      'options': None,
    }
    return Admission(**arrays)

  def _empty_state(self, params: PyTree, options: RequestOptions) -> State:
    """The program that creates the caches."""
    state = self._decoder.empty_state(params, self._sizes, self._shards)
    requests = state.requests._replace(options=options)
    return self._programs.constrained(state._replace(requests=requests))
