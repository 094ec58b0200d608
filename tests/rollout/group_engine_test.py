# SPDX-License-Identifier: Apache-2.0
"""Groups that are added while the engine decodes: exactness, rows, limits."""

import jax
import numpy as np
import pytest

from covrl.models import Policy, tiny
from covrl.parallel.sharding import make_mesh
from covrl.rollout import GroupEngine, Sampling, SamplingEngine

# Size of the vocabulary, number of prompts, their padded length, responses per
# prompt, largest number of tokens of a response, and the tokens that end one.
VOCAB, COUNT, WIDTH, GROUP, LIMIT, END = 16, 9, 8, 3, 10, (3, 5)
POLICY = Policy(tiny(VOCAB))
PARAMS = POLICY.init(jax.random.key(0))
KEY = jax.random.key(7)
SETTINGS = {'end_ids': END, 'pad_id': 0, 'max_response_length': LIMIT}
SAMPLING = {'temperature': 0.9, 'top_k': 12}


def make_engine(mesh=None, **changes):
  defaults = {
    'prompts': 4,
    'prompt_width': WIDTH,
    'group_size': GROUP,
    'segment': 3,
  }
  return GroupEngine(POLICY, mesh, **{**SETTINGS, **defaults, **changes})


def make_prompts():
  rng = np.random.default_rng(0)
  prompts = rng.integers(0, VOCAB, (COUNT, WIDTH)).astype(np.int32)
  lengths = 1 + rng.integers(0, WIDTH, (COUNT, 1))
  return prompts, np.arange(WIDTH) >= WIDTH - lengths


PROMPTS, MASK = make_prompts()
IDS = 100 + np.arange(COUNT * GROUP, dtype=np.int32)


def run(engine, order, params=PARAMS, at_once=COUNT, **sampling):
  """Samples groups in an order of their prompts; returns samples by number."""
  engine.begin(
    params, key=KEY, sampling=Sampling.make(**(sampling or SAMPLING))
  )
  numbers = list(order)
  waiting, finished, ended_responses = list(numbers), {}, set()
  while waiting or engine.is_busy:
    for response in engine.read():
      assert (response.number, response.index_in_group) not in ended_responses
      ended_responses.add((response.number, response.index_in_group))
      if response.samples is not None:
        finished[response.number] = response.samples
        row = response.samples.response_tokens[response.index_in_group]
        mask = response.samples.response_mask[response.index_in_group]
        assert row[mask].tolist() == response.tokens
    for _ in range(at_once):
      if waiting and engine.has_room:
        i = waiting.pop(0)
        ids = IDS[i * GROUP : (i + 1) * GROUP]
        engine.add(i, PROMPTS[i], MASK[i], ids)
    engine.run()
  assert engine.read() == []
  assert len(ended_responses) == len(numbers) * GROUP
  engine.end()
  return finished


@pytest.fixture(scope='module')
def engine():
  # Fewer slots than responses of two groups.
  engine = make_engine(slots=5)
  engine.warm_up(PARAMS)
  return engine


@pytest.fixture(scope='module')
def expected():
  """The responses of the engine of fixed batches."""
  fixed = SamplingEngine(POLICY, **SETTINGS)
  return jax.device_get(
    fixed.sample(
      PARAMS,
      PROMPTS,
      MASK,
      group_size=GROUP,
      key=KEY,
      sequence_ids=IDS,
      sampling=Sampling.make(**SAMPLING),
    )
  )


def assert_close(separate, expected):
  """Asserts that groups have the responses of a fixed batch."""
  for number, samples in separate.items():
    rows = slice(number * GROUP, (number + 1) * GROUP)
    for name, ours in samples._asdict().items():
      if ours is None:
        assert getattr(expected, name) is None
        continue
      theirs = getattr(expected, name)[rows]
      if ours.dtype == np.float32:
        np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=1e-6)
      else:
        np.testing.assert_array_equal(ours, theirs)


def test_nothing_is_compiled_after_the_warm_up(engine):
  compiled = []

  def listen(event, duration_secs, **kwargs):
    del duration_secs, kwargs
    if event.endswith('backend_compile_duration'):
      compiled.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  run(engine, (1, 8, 4))
  assert not compiled


def test_the_time_at_which_a_group_is_added_changes_no_bit_of_it(
  engine, expected
):
  all_at_once = run(engine, range(COUNT))
  assert_close(all_at_once, expected)
  one_by_one = run(engine, reversed(range(COUNT)), at_once=1)
  assert all_at_once.keys() == one_by_one.keys()
  for number, samples in all_at_once.items():
    jax.tree.map(np.testing.assert_array_equal, samples, one_by_one[number])
  # Some of the groups alone.
  for number, samples in run(engine, (6, 2)).items():
    jax.tree.map(np.testing.assert_array_equal, samples, all_at_once[number])


@pytest.mark.slow
@pytest.mark.parametrize('slots', [0, 2])
def test_any_number_of_slots_gives_the_same_responses(expected, slots):
  assert_close(run(make_engine(slots=slots), range(COUNT)), expected)


@pytest.mark.slow
def test_groups_are_split_over_a_mesh(expected):
  mesh = make_mesh({'data': 2, 'fsdp': 1, 'tensor': 2}, jax.devices()[:4])
  shardings = jax.tree.map(
    lambda leaf: leaf.sharding, POLICY.abstract_params(mesh)
  )
  engine = make_engine(mesh, slots=5)
  assert engine.slots == 6
  actual = run(engine, range(COUNT), jax.device_put(PARAMS, shardings))
  assert_close(actual, expected)


def test_refuses_prompts_without_tokens_or_without_room(engine):
  engine.begin(PARAMS, key=KEY, sampling=Sampling.make())
  with pytest.raises(ValueError, match='group 4 must have at least one token'):
    engine.add(4, PROMPTS[0], np.zeros(WIDTH, bool), IDS[:GROUP])
  number = 0
  while engine.has_room:
    engine.add(number, PROMPTS[0], MASK[0], IDS[:GROUP])
    number += 1
  with pytest.raises(RuntimeError, match='has_room must be true when'):
    engine.add(number, PROMPTS[0], MASK[0], IDS[:GROUP])
  engine.end()
  with pytest.raises(RuntimeError, match='begin must be called before run'):
    engine._dispatch([], decodes=True)


@pytest.mark.usefixtures('no_annotation_checks')
def test_refuses_numbers_that_name_no_single_group(engine):
  with pytest.raises(RuntimeError, match='begin must be called before add'):
    engine.add(0, PROMPTS[0], MASK[0], IDS[:GROUP])
  engine.begin(PARAMS, key=KEY, sampling=Sampling.make())
  for number in (1.5, '3', True, -1, 2**70):
    with pytest.raises((TypeError, ValueError), match='number must'):
      engine.add(number, PROMPTS[0], MASK[0], IDS[:GROUP])
  engine.add(0, PROMPTS[0], MASK[0], IDS[:GROUP])
  with pytest.raises(ValueError, match='must be unique since begin, got 0 twi'):
    engine.add(0, PROMPTS[1], MASK[1], IDS[GROUP : 2 * GROUP])
  engine.end()
