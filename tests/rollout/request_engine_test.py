# SPDX-License-Identifier: Apache-2.0
"""Request engine: exactness, isolation of requests, options, rows, limits."""

import gc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covrl.models import Policy, tiny
from covrl.parallel.sharding import make_mesh
from covrl.rollout import Request, RequestEngine, Sampling, SamplingEngine

# Size of the vocabulary, largest numbers of tokens of a prompt and a response, and
# the tokens that end one.
VOCAB, LENGTH, LIMIT, END = 16, 8, 10, (3, 5)
POLICY = Policy(tiny(VOCAB))
PARAMS = POLICY.init(jax.random.key(0))


def make_engine(mesh=None, params=PARAMS, **changes):
  settings = {
    'end_ids': END,
    'pad_id': 0,
    'max_prompt_length': LENGTH,
    'max_response_length': LIMIT,
    'slots': 4,
    'segment': 3,
    'max_stop_ids': 2,
  }
  return RequestEngine(POLICY, params, mesh, **{**settings, **changes})


@pytest.fixture(scope='module')
def engine():
  return make_engine()


def make_requests(count, seed=0):
  """Requests of random lengths and options."""
  rng = np.random.default_rng(seed)
  options: tuple[dict[str, Any], ...] = (
    {},
    {'temperature': 0.0},
    {'temperature': 0.7, 'top_p': 0.8},
    {'top_k': 3},
    {'min_p': 0.2, 'temperature': 1.5},
  )
  return [
    Request(
      prompt=tuple(rng.integers(0, VOCAB, 1 + i % LENGTH).tolist()),
      max_tokens=int(rng.integers(1, LIMIT + 1)),
      seed=int(rng.integers(2**32)),
      stop_ids=tuple(rng.integers(0, VOCAB, int(rng.integers(3))).tolist()),
      **options[rng.integers(len(options))],
    )
    for i in range(count)
  ]


def finish(engine, requests, cancel=()):
  """Runs requests to their ends; returns their tokens, and checks the rows.

  Args:
    engine: the engine.
    requests: the requests.
    cancel: indices of requests that are cancelled once they have tokens.
  """
  numbers = [engine.submit(request) for request in requests]
  index = {number: i for i, number in enumerate(numbers)}
  outputs, finished = {i: [] for i in range(len(requests))}, set()
  while engine.num_waiting or engine.num_running:
    for number, step_output in engine.step().items():
      i = index[number]
      assert i not in finished
      outputs[i] += zip(
        step_output.tokens,
        step_output.policy_logprobs,
        step_output.sampling_logprobs,
        strict=True,
      )
      if step_output.finish_reason is not None:
        assert step_output.finish_reason == expected_reason(
          requests[i], outputs[i]
        )
        finished.add(i)
      elif i in cancel:
        engine.cancel(number)
        finished.add(i)
  assert finished == set(range(len(requests)))
  assert engine.step() == {}
  return outputs


def expected_reason(request, output):
  ends = [token in (*END, *request.stop_ids) for token, *_ in output]
  assert not any(ends[:-1])
  assert len(output) <= request.max_tokens
  if ends[-1]:
    return 'stop'
  return 'length' if len(output) == request.max_tokens else None


def test_responses_equal_those_of_the_fixed_batch(engine):
  prompts = np.random.default_rng(0).integers(0, VOCAB, (3, LENGTH))
  fixed = SamplingEngine(
    POLICY, end_ids=END, pad_id=0, max_response_length=LIMIT
  )
  cases: tuple[dict[str, Any], ...] = ({}, {'temperature': 0.7, 'top_k': 5})
  for sampling in cases:
    samples = jax.device_get(
      fixed.sample(
        PARAMS,
        prompts.astype(np.int32),
        np.ones((3, LENGTH), bool),
        group_size=2,
        key=jax.random.key(11),
        sequence_ids=np.arange(6, dtype=np.int32),
        sampling=Sampling.make(**sampling),
      )
    )
    requests = [
      Request(
        prompt=tuple(prompts[i // 2].tolist()),
        max_tokens=LIMIT,
        seed=11,
        sequence_id=i,
        **sampling,
      )
      for i in range(6)
    ]
    for i, output in finish(engine, requests).items():
      mask = samples.response_mask[i]
      tokens, _, behaviour = zip(*output, strict=True)
      assert list(tokens) == samples.response_tokens[i][mask].tolist()
      np.testing.assert_allclose(
        behaviour, samples.behaviour_logprobs[i][mask], atol=1e-6
      )


def test_log_probabilities_are_those_of_temperature_one(engine):
  cases: tuple[dict[str, Any], ...] = (
    {},
    {'temperature': 0.5},
    {'temperature': 1.7, 'top_k': 4},
  )
  requests = [
    Request(prompt=(1, 2, 3), max_tokens=LIMIT, seed=i, **options)
    for i, options in enumerate(cases)
  ]
  for i, output in finish(engine, requests).items():
    tokens, policy, sampling = map(list, zip(*output, strict=True))
    row = jnp.array([[1, 2, 3, *tokens]])
    logits = np.asarray(POLICY.logits(PARAMS, row), np.float64)[0, 2:-1]
    temperature = requests[i].temperature
    indices = np.arange(len(tokens)), tokens
    for logprobs, scale in ((policy, 1.0), (sampling, temperature)):
      log_pi = logits / scale
      if scale > 1:
        top_logits = np.sort(log_pi, axis=1)[:, -4:]
        log_pi = log_pi - np.log(np.exp(top_logits).sum(axis=1, keepdims=True))
      else:
        log_pi = log_pi - np.log(np.exp(log_pi).sum(axis=1, keepdims=True))
      np.testing.assert_allclose(logprobs, log_pi[indices], atol=1e-5)


def test_responses_do_not_depend_on_other_or_cancelled_requests(engine):
  requests = make_requests(24)
  with_cancellations = finish(engine, requests, cancel=range(2, 24, 3))
  reversed_order = finish(engine, requests[::-1])
  for i in range(0, 24, 3):
    alone = finish(engine, [requests[i]])[0]
    assert with_cancellations[i] == alone
    assert reversed_order[23 - i] == alone
  for i in range(2, 24, 3):
    assert (
      reversed_order[23 - i][: len(with_cancellations[i])]
      == with_cancellations[i]
    )


def test_waiting_requests_are_cancelled(engine):
  requests = make_requests(20, seed=1)
  numbers = [engine.submit(request) for request in requests]
  engine.cancel(numbers[19])
  engine.cancel(numbers[19])
  assert engine.num_waiting == 19
  for number in numbers:
    engine.cancel(number)
  assert engine.step() == {}
  assert engine.num_waiting == engine.num_running == 0


@pytest.mark.parametrize(
  'count', [300, pytest.param(10_000, marks=pytest.mark.slow)]
)
def test_every_request_is_finished_and_leaves_no_array(engine, count):
  finish(engine, make_requests(8))
  gc.collect()
  before = len(jax.live_arrays())
  outputs = finish(engine, make_requests(count, seed=2))
  assert all(outputs.values())
  gc.collect()
  assert len(jax.live_arrays()) == before
  assert not engine._rows._rows
  assert not engine._rows._prompt_uses
  assert not any(engine._waiting._queues.values())
  assert sorted(engine._rows._free[0]) == list(range(8))
  assert sorted(engine._rows._free_prompts[0]) == list(range(8))


def test_nothing_is_compiled_after_the_start(engine):
  compiled = []

  def listen(event, duration_secs, **kwargs):
    del duration_secs, kwargs
    if event.endswith('backend_compile_duration'):
      compiled.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  finish(engine, make_requests(12, seed=4), cancel=(1, 5))
  assert not compiled


def test_shards_of_a_mesh_sample_the_same_as_one_device(engine):
  mesh = make_mesh((2, 1, 2), jax.devices()[:4])
  params = jax.device_put(
    PARAMS,
    jax.tree.map(lambda leaf: leaf.sharding, POLICY.abstract_params(mesh)),
  )
  requests = make_requests(30, seed=3)
  on_mesh = finish(make_engine(mesh, params), requests, cancel=(4,))
  expected = finish(engine, requests)
  for i, output in on_mesh.items():
    assert [x[0] for x in output] == [x[0] for x in expected[i]][: len(output)]
    assert len(output) == len(expected[i]) or i == 4


def test_responses_do_not_depend_on_the_widths_of_other_prompts(monkeypatch):
  monkeypatch.setattr('covrl.rollout.request_engine.PROMPT_WIDTHS', (8,))
  wide_engine = make_engine(max_prompt_length=20)
  short_request, long = make_requests(1)[0], (*range(1, 15), 0, 1, 2)
  long = Request(prompt=long, max_tokens=LIMIT, seed=5)
  outputs = finish(wide_engine, [long, short_request, long])
  assert outputs[0] == outputs[2] == finish(wide_engine, [long])[0]
  assert outputs[1] == finish(wide_engine, [short_request])[0]


VALID: dict[str, Any] = {'prompt': (1, 2), 'max_tokens': 3, 'seed': 0}


@pytest.mark.usefixtures('no_annotation_checks')
@pytest.mark.parametrize(
  ('changes', 'sentence'),
  [
    ({'prompt': ()}, 'the prompt must have 1 to 8 tokens, got 0'),
    ({'prompt': (1,) * 9}, 'the prompt must have 1 to 8 tokens, got 9'),
    ({'prompt': (16,)}, r'prompt must have token ids in \[0, 16\), got 16'),
    ({'max_tokens': 0}, r'max_tokens must lie in \[1, 10\], got 0'),
    ({'max_tokens': 11}, r'max_tokens must lie in \[1, 10\], got 11'),
    ({'stop_ids': (-1,)}, r'stop_token_ids must have .* got -1'),
    ({'stop_ids': (1, 2, 4)}, 'must have at most 2 entries, got 3'),
    ({'seed': -1}, 'seed must lie in .* got -1'),
    ({'temperature': float('nan')}, 'temperature must be finite .* got nan'),
    ({'temperature': 1e-9}, 'must be 0 or lie in .* got 1e-09'),
    ({'top_p': 0.0}, r'top_p must lie in \(0, 1\], got 0.0'),
    ({'top_k': 2**31}, 'top_k must be a whole number'),
    ({'min_p': 1.5}, r'min_p must lie in \[0, 1\], got 1.5'),
    ({'prompt': (1.5, 2)}, 'token ids of prompt must be an integer, got 1.5'),
    ({'max_tokens': 2.5}, 'max_tokens must be an integer, got 2.5'),
    ({'seed': 1.5}, 'seed must be an integer, got 1.5'),
    (
      {'prompt': np.array([1, 2])},
      'prompt must be a tuple of .* got a ndarray',
    ),
    ({'stop_ids': {4}}, 'stop_token_ids must be a tuple of .* got a set'),
    ({'temperature': True}, 'temperature must be a number, got True'),
    ({'temperature': '1'}, "temperature must be a number, got '1'"),
    ({'temperature': None}, 'temperature must be a number, got None'),
    ({'top_p': np.ones(2)}, 'top_p must be a scalar'),
    ({'top_k': True}, 'top_k must be a number, got True'),
    ({'min_p': True}, 'min_p must be a number, got True'),
  ],
)
def test_refuses_invalid_requests(engine, changes, sentence):
  with pytest.raises((TypeError, ValueError), match=sentence):
    engine.submit(Request(**{**VALID, **changes}))
  assert engine.num_waiting == 0


@pytest.mark.usefixtures('no_annotation_checks')
def test_refuses_what_is_not_a_request_or_a_number(engine):
  with pytest.raises(
    TypeError, match=r'request must be a Request, got \(1, 2\)'
  ):
    engine.submit((1, 2))
  for number in ('1', 1.0, 0, 10**6):
    with pytest.raises((TypeError, ValueError), match='number must'):
      engine.cancel(number)
  assert finish(engine, make_requests(2))


def test_refuses_invalid_engines():
  with pytest.raises(ValueError, match='slots must be at least 1, got 0'):
    make_engine(slots=0)
  with pytest.raises(ValueError, match='max_response_length must be at least'):
    make_engine(max_response_length=0)
