# SPDX-License-Identifier: Apache-2.0
"""Slots of the sampling engine: refill, reduction, and carried responses."""

import itertools

import jax
import numpy as np
import pytest
from rollout.engines import (
  ALL_ROWS,
  END,
  GROUP,
  IDS,
  KEY,
  LENGTH,
  LIMIT,
  PARAMS,
  POLICY,
  PROMPTS,
  VOCAB,
  forward,
  make_engine,
  make_prompts,
  params_on,
  sample,
  to_numpy,
  to_rows,
)

from covrl.parallel.sharding import make_mesh
from covrl.rollout import Sampling
from covrl.rollout import layout as layout_module


def assert_same(actual, expected, atol=1e-6):
  """Checks that tokens are equal, and log-probabilities up to rounding."""
  for name in ('response_tokens', 'response_mask', 'truncated'):
    np.testing.assert_array_equal(
      getattr(actual, name), getattr(expected, name)
    )
  for name in ('sampler_logprobs', 'behaviour_logprobs'):
    np.testing.assert_allclose(
      getattr(actual, name), getattr(expected, name), atol=atol, rtol=1e-6
    )


@pytest.mark.parametrize(('slots', 'segment'), [(8, 3), (1, 4), (5, 16)])
def test_slots_are_refilled_from_the_queue(slots, segment):
  engine = make_engine(slots=slots, segment=segment)
  assert_same(to_numpy(sample(engine)), to_numpy(sample()))


def test_other_requests_and_their_order_change_no_bit_of_a_response():
  """The number of slots is the same."""
  engine = make_engine(slots=8, segment=2)
  all_samples = to_numpy(sample(engine))
  order = [3, 0, 7, 1]
  some_samples = to_numpy(sample(engine, rows=order))
  rows = np.arange(PROMPTS * GROUP).reshape(PROMPTS, GROUP)[order].reshape(-1)
  jax.tree.map(
    lambda all_rows, values: np.testing.assert_array_equal(
      all_rows[rows], values
    ),
    all_samples,
    some_samples,
  )


def test_number_of_slots_is_reduced_when_slots_are_idle(monkeypatch):
  monkeypatch.setattr(layout_module, 'MIN_SLOTS', 2)
  engine, sizes = make_engine(segment=2), []
  run = engine._run

  def run_and_count(params, state, *arguments):
    sizes.append(len(state.request))
    return run(params, state, *arguments)

  monkeypatch.setattr(engine, '_run', run_and_count)
  assert_same(to_numpy(sample(engine)), to_numpy(sample()))
  assert sizes[0] == 32
  assert sizes == sorted(sizes, reverse=True)
  assert set(sizes) <= {32, 16, 8, 4}
  assert sizes[-1] < 32


def test_slots_are_refilled_within_shards_of_a_mesh():
  engine = make_engine(make_mesh((4,), jax.devices()[:4]), slots=8, segment=3)
  params, responses = params_on(engine.mesh), Responses()
  options = {'on_response': responses}
  samples = to_numpy(sample(engine, params=params, options=options))
  assert_same(samples, to_numpy(sample()), atol=1e-5)
  responses.assert_equal(samples)


class Responses(dict):
  """Receives finished responses, each once."""

  def __call__(self, row, tokens):
    assert row not in self
    self[row] = tokens

  def assert_equal(self, samples):
    mask = samples.response_mask
    rows = np.flatnonzero(mask.any(axis=1)).tolist()
    assert self == {
      row: samples.response_tokens[row][mask[row]].tolist() for row in rows
    }


def test_finished_responses_are_handed_over_while_others_are_sampled(
  monkeypatch,
):
  engine, finished_counts = make_engine(slots=8, segment=2), []
  run = engine._run

  def run_and_count(*arguments):
    finished_counts.append(len(responses))
    return run(*arguments)

  monkeypatch.setattr(engine, '_run', run_and_count)
  responses = Responses()
  prompts, mask = make_prompts()
  mask[3] = False
  samples = engine.sample(
    PARAMS,
    prompts,
    mask,
    group_size=GROUP,
    key=KEY,
    sequence_ids=IDS,
    sampling=Sampling.make(),
    on_response=responses,
  )
  responses.assert_equal(to_numpy(samples))
  assert len(responses) == (PROMPTS - 1) * GROUP
  # Responses of one token are reported after the third call has begun.
  assert finished_counts[:2] == [0, 0]
  assert 0 < finished_counts[2] < finished_counts[-1] < len(responses)


def stop_after_segments(num_segments):
  """Options that stop sampling when `num_segments` segments, and one more, have run."""
  calls = itertools.count()
  return {'is_enough': lambda: next(calls) >= num_segments}


@pytest.mark.parametrize(
  'shape', [None, pytest.param((4,), marks=pytest.mark.slow)]
)
def test_carried_responses_go_on_with_the_given_parameters(shape):
  """All keys and values are made again, those of responses included."""
  mesh = shape and make_mesh(shape, jax.devices()[: shape[0]])
  engine = make_engine(mesh, slots=8, segment=2)
  params = params_on(mesh) if mesh else PARAMS
  carried = to_numpy(
    sample(engine, params=params, options=stop_after_segments(1))
  )
  assert (carried.response_mask.sum(axis=1) == 1).any()
  continued = sample(engine, params=params, options={'carried': carried})
  assert_same(to_numpy(continued), to_numpy(sample()), atol=1e-5)

  other_params, responses = jax.tree.map(lambda x: 1.5 * x, params), Responses()
  options = {'carried': carried, 'on_response': responses}
  completed = to_numpy(sample(engine, params=other_params, options=options))
  is_carried = carried.response_mask
  for name in ('response_tokens', 'sampler_logprobs', 'behaviour_logprobs'):
    np.testing.assert_array_equal(
      getattr(completed, name)[is_carried], getattr(carried, name)[is_carried]
    )
  logits = forward(POLICY, to_rows(completed), jax.device_get(other_params))
  logprobs = np.asarray(jax.nn.log_softmax(logits))[:, LENGTH - 1 : -1]
  tokens = completed.response_tokens[..., None]
  logprobs = np.take_along_axis(logprobs, tokens, axis=2)[..., 0]
  is_new = completed.response_mask & ~is_carried
  assert (is_new.any(axis=1) & (is_carried.sum(axis=1) > 2)).any()
  np.testing.assert_allclose(
    completed.sampler_logprobs[is_new], logprobs[is_new], atol=2e-5
  )
  was_finished = is_carried.any(axis=1) & ~is_new.any(axis=1)
  assert was_finished.any()
  assert set(responses) == set(np.flatnonzero(~was_finished).tolist())
  for row, response in responses.items():
    mask = completed.response_mask[row]
    assert completed.response_tokens[row][mask].tolist() == response


@pytest.mark.slow
def test_ten_thousand_requests_get_the_responses_of_smaller_batches():
  """There are few slots, and every request gets one response."""
  engine = make_engine(slots=64, segment=8)
  rng = np.random.default_rng(3)
  prompts = rng.integers(0, VOCAB, (1250, LENGTH)).astype(np.int32)
  mask = np.arange(LENGTH) >= LENGTH - rng.integers(0, LENGTH + 1, (1250, 1))
  ids = rng.permutation(10_000).astype(np.int32)

  def run(rows):
    return to_numpy(
      engine.sample(
        PARAMS,
        prompts[rows],
        mask[rows],
        group_size=8,
        key=KEY,
        sequence_ids=ids.reshape(1250, 8)[rows].reshape(-1),
        sampling=Sampling.make(),
      )
    )

  all_samples = run(ALL_ROWS)
  lengths = all_samples.response_mask.sum(axis=1)
  exists = np.repeat(mask.any(axis=1), 8)
  np.testing.assert_array_equal(lengths > 0, exists)
  last = all_samples.response_tokens[
    np.arange(10_000), np.maximum(lengths - 1, 0)
  ]
  ended = np.isin(last, END)
  np.testing.assert_array_equal(all_samples.truncated, exists & ~ended)
  assert (lengths[exists & ~ended] == LIMIT).all()
  # With fewer prompts the prefill has another shape, and rounds differently.
  some_samples = run(slice(600, 700))
  assert_same(
    jax.tree.map(lambda x: x[4800:5600], all_samples), some_samples, atol=2e-6
  )
