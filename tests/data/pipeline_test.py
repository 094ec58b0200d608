# SPDX-License-Identifier: Apache-2.0
"""Tests of streams: one order for any resumption and number of processes."""

import json
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covrl.data import (
  ConcatenatedSource,
  CountdownConfig,
  CountdownSource,
  ListSource,
  MixtureSource,
  Problem,
  PromptStream,
  SolvedCountdownSource,
  SubsetSource,
  SupervisedStream,
  countdown_tokenizer,
  train_sentencepiece,
)
from covrl.data.pipeline import check_in_memory

TOKENIZER = train_sentencepiece([' '.join(map(str, range(64)))])


def number_source(count, name='numbers'):
  """A source whose n-th problem has the reference n."""
  return ListSource(
    [
      Problem(prompt=f'{n} {n}', reference=n, source=name, solution=f'{n}')
      for n in range(count)
    ]
  )


def stream(source=None, **settings):
  """A stream of four prompts per draw; settings replace its arguments."""
  return PromptStream(
    number_source(10) if source is None else source,
    **{
      'seed': 3,
      'prompts_per_draw': 4,
      'tokenizer': TOKENIZER,
      'max_prompt_length': 5,
      **settings,
    },
  )


def references_of(batches):
  """References of all problems of some draws."""
  return [problem.reference for batch in batches for problem in batch.problems]


def take_draws(prompts, draws):
  """The next draws of a stream, which is then closed."""
  draws_taken = [next(prompts) for _ in range(draws)]
  prompts.close()
  return draws_taken


def are_equal(batches, other_batches):
  """Whether two lists of draws are equal."""
  return all(
    a.problems == b.problems
    and a.draw == b.draw
    and np.array_equal(a.tokens, b.tokens)
    and np.array_equal(a.mask, b.mask)
    and np.array_equal(a.indices, b.indices)
    for a, b in zip(batches, other_batches, strict=True)
  )


def test_prompts_are_padded_on_the_left():
  source = ListSource(
    [
      Problem(prompt=text, reference=None, source='s')
      for text in ('7', '1 2 3 4', '5 6')
    ]
  )
  (batch,) = take_draws(stream(source, prompts_per_draw=3, shuffle=False), 1)
  assert batch.tokens.shape == (3, 8)
  assert batch.tokens.dtype == np.int32
  assert batch.mask.sum(1).tolist() == [2, 5, 3]
  # No padding after the first real token.
  assert (np.diff(batch.mask.astype(int)) >= 0).all()
  for row, problem in enumerate(batch.problems):
    ids = batch.tokens[row, batch.mask[row]].tolist()
    assert ids == [TOKENIZER.bos_id, *TOKENIZER.encode(problem.prompt)]
  assert (batch.tokens[~batch.mask] == TOKENIZER.pad_id).all()


def test_indices_are_positions_in_the_order():
  batches = take_draws(stream(), 3)
  indices = np.concatenate([batch.indices for batch in batches])
  assert indices.dtype == np.int64
  assert indices.tolist() == list(range(12))
  assert [batch.draw for batch in batches] == [0, 1, 2]


def test_epochs_visit_all_problems_once_in_different_orders():
  order = references_of(take_draws(stream(prompts_per_draw=5), 6))
  epochs = [order[0:10], order[10:20], order[20:30]]
  assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
  assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
  assert references_of(take_draws(stream(seed=4), 2)) != order[:8]
  assert references_of(take_draws(stream(shuffle=False), 3)) == [
    *range(10),
    0,
    1,
  ]


@pytest.mark.parametrize('prefetch', [0, 1, 3])
def test_resumed_streams_equal_uninterrupted_ones(prefetch):
  uninterrupted = take_draws(stream(), 7)
  first = stream(prefetch=prefetch)
  first_draws = [next(first) for _ in range(3)]
  state = json.loads(json.dumps(first.get_state()))
  first.close()
  assert state == {
    'draw': 3,
    'seed': 3,
    'problems': number_source(10).fingerprint,
  }
  second = stream(prefetch=prefetch)
  second.set_state(state)
  assert second.get_state() == state
  assert are_equal([*first_draws, *take_draws(second, 4)], uninterrupted)


def test_streams_can_be_set_to_an_earlier_state():
  prompts = stream()
  start = prompts.get_state()
  first = [next(prompts) for _ in range(2)]
  prompts.set_state(start)
  assert are_equal(take_draws(prompts, 2), first)


@given(st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(0, 1000))
@settings(max_examples=12, deadline=None)
def test_order_does_not_depend_on_the_number_of_processes(count, seed):
  def read(**shares):
    return take_draws(stream(seed=seed, prompts_per_draw=12, **shares), 2)

  shares = [
    read(process_index=index, process_count=count, prefetch=0)
    for index in range(count)
  ]
  for draw, single in enumerate(read(prefetch=0)):
    parts = [share[draw] for share in shares]
    assert references_of(parts) == references_of([single])
    for name in ('tokens', 'mask', 'indices', 'source_ids'):
      joined = np.concatenate([getattr(part, name) for part in parts])
      assert np.array_equal(joined, getattr(single, name))


def test_source_ids_are_indices_into_the_names():
  source = ConcatenatedSource([number_source(3, 'a'), number_source(2, 'b')])
  (batch,) = take_draws(stream(source, prompts_per_draw=5, shuffle=False), 1)
  assert batch.source_ids.tolist() == [0, 0, 0, 1, 1]


@pytest.fixture
def mixture():
  """A mixture of one problem of a to three of b, from sources of equal size."""
  return MixtureSource(
    [number_source(6, 'a'), number_source(6, 'b')], [1.0, 3.0]
  )


def test_mixtures_have_their_weights_in_every_draw(mixture):
  batches = take_draws(stream(mixture, prompts_per_draw=8), 6)
  for batch in batches:
    assert batch.source_ids.tolist().count(1) == 6
  a, b = (
    [p.reference for x in batches for p in x.problems if p.source == name]
    for name in 'ab'
  )
  # Two epochs of a and six of b, each with every problem once.
  assert sorted(a) == sorted([*range(6)] * 2)
  assert all(sorted(b[n : n + 6]) == [*range(6)] for n in range(0, 36, 6))
  # The sources are shuffled differently.
  assert a[:6] != b[:6]


def test_mixtures_resume_from_their_draw(mixture):
  uninterrupted = take_draws(stream(mixture, prompts_per_draw=8), 6)
  resumed = stream(mixture, prompts_per_draw=8)
  resumed.set_state({'draw': 4, 'seed': 3, 'problems': mixture.fingerprint})
  assert are_equal(take_draws(resumed, 2), uninterrupted[4:])
  other_seed = take_draws(stream(mixture, prompts_per_draw=8, seed=4), 6)
  assert references_of(other_seed) != references_of(uninterrupted)


@given(st.sampled_from([1, 2, 4, 8]))
@settings(max_examples=4, deadline=None)
def test_mixtures_do_not_depend_on_the_number_of_processes(count):
  mixture = MixtureSource(
    [number_source(5, 'a'), number_source(7, 'b')], [2.0, 1.0]
  )
  (single,) = take_draws(stream(mixture, prompts_per_draw=8, prefetch=0), 1)
  shares = [
    take_draws(
      stream(
        mixture,
        prompts_per_draw=8,
        process_index=index,
        process_count=count,
        prefetch=0,
      ),
      1,
    )[0]
    for index in range(count)
  ]
  assert references_of(shares) == references_of([single])


class ThreadRecorder:
  """A source that records the thread of each access."""

  names = ('recorded',)

  def __init__(self):
    self.threads = []

  def __len__(self):
    return 8

  def __getitem__(self, index):
    self.threads.append(threading.current_thread().name)
    return Problem(prompt='1', reference=index, source='recorded')


def test_draws_are_prepared_in_the_background():
  source = ThreadRecorder()
  prompts = stream(source, prompts_per_draw=8, prefetch=2)
  next(prompts)
  deadline = time.monotonic() + 30.0
  while len(source.threads) < 3 * 8 and time.monotonic() < deadline:
    time.sleep(0.01)
  assert len(source.threads) == 3 * 8
  assert threading.current_thread().name not in source.threads
  assert len(set(source.threads)) == 1
  prompts.close()


@pytest.mark.parametrize('prefetch', [0, 2])
def test_refuses_long_prompts(prefetch):
  problems = [
    Problem(prompt='1 ' * length, reference=0, source='web')
    for length in (1, 4, 5, 2)
  ]
  prompts = stream(ListSource(problems), shuffle=False, prefetch=prefetch)
  message = "must have at most 5 tokens, got 6 in problem 2 of source 'web'"
  with pytest.raises(ValueError, match=message):
    next(prompts)
  prompts.close()


def test_refuses_invalid_streams_and_states():
  with pytest.raises(ValueError, match='at least one problem'):
    stream(ListSource([]))
  with pytest.raises(ValueError, match='multiple of the 3 processes'):
    stream(process_count=3)
  with pytest.raises(ValueError, match=r'lie in \[0, 2\), got 2'):
    stream(process_index=2, process_count=2)
  with pytest.raises(
    ValueError, match='of a stream with seed 3, got one with seed 4'
  ):
    stream().set_state({'draw': 1, 'seed': 4, 'problems': ''})
  with pytest.raises(ValueError, match='draw must be an integer of at least 0'):
    stream().set_state({**stream().get_state(), 'draw': -1})


def test_supervised_streams_resume_and_are_split_over_processes():
  def rows(**settings):
    return SupervisedStream(
      number_source(10),
      seed=1,
      sequences_per_draw=6,
      tokenizer=TOKENIZER,
      max_length=8,
      **settings,
    )

  uninterrupted = take_draws(rows(), 3)
  resumed = rows(prefetch=0)
  resumed.set_state({**resumed.get_state(), 'draw': 2})
  assert np.array_equal(next(resumed).tokens, uninterrupted[2].tokens)
  halves = [
    take_draws(rows(process_index=index, process_count=2), 1)[0]
    for index in (0, 1)
  ]
  targets = np.concatenate([half.targets for half in halves])
  assert np.array_equal(targets, uninterrupted[0].targets)


def test_streams_of_countdown_problems_have_rows_of_the_given_width():
  config = CountdownConfig(held_out=4)
  tokenizer = countdown_tokenizer(config)
  (prompts,) = take_draws(
    stream(CountdownSource(config), tokenizer=tokenizer, max_prompt_length=8), 1
  )
  assert prompts.tokens.shape == (4, 8)
  rows = SupervisedStream(
    SolvedCountdownSource(config),
    seed=0,
    sequences_per_draw=8,
    tokenizer=tokenizer,
    max_length=23,
    width_multiple=4,
  )
  (batch,) = take_draws(rows, 1)
  assert batch.tokens.shape == (8, 24)
  assert not batch.segment_ids[:, 23].any()


@pytest.mark.parametrize('error', [IndexError, KeyError, StopIteration])
def test_a_source_without_a_problem_at_an_index_is_named(error):
  class Short:
    names = ('toy',)

    def __len__(self):
      return 20

    def __getitem__(self, index):
      raise error('beyond the file')

  stream = PromptStream(
    Short(),
    seed=0,
    prompts_per_draw=4,
    tokenizer=TOKENIZER,
    max_prompt_length=8,
    prefetch=0,
  )
  with pytest.raises(
    ValueError, match=rf'a source of 20 problems .*, got {error.__name__} at \d'
  ):
    next(stream)


def test_a_source_keeps_its_length():
  """Another length is another order, within an epoch, too."""

  class Growing:
    names = ('toy',)
    size = 20

    def __len__(self):
      return self.size

    def __getitem__(self, index):
      return Problem(prompt='1', reference=index, source='toy')

  source = Growing()
  stream = PromptStream(
    source,
    seed=0,
    prompts_per_draw=4,
    tokenizer=TOKENIZER,
    max_prompt_length=8,
    prefetch=0,
  )
  next(stream)
  source.size = 21
  with pytest.raises(ValueError, match='keep its length, 20 problems, got 21'):
    next(stream)


def test_all_problems_in_memory_are_built_before_a_run():
  built: list[int] = []
  source = number_source(1500)
  check_in_memory(source, lambda problems, indices: built.extend(indices))
  assert built == [*range(1500)]
  others = SubsetSource(source, np.arange(3))
  check_in_memory(others, lambda problems, indices: built.clear())
  assert built
