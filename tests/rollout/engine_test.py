# SPDX-License-Identifier: Apache-2.0
"""Sampling engine: agreement with the trainer, layouts, meshes, compilation."""

import dataclasses
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rollout.engines import (
  END,
  ENGINE,
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

from covrl.models import Policy
from covrl.parallel.sharding import make_mesh, reshape_mesh
from covrl.rollout import Sampling, SamplingEngine
from covrl.rollout import layout as layout_module
from covrl.types import Rollouts


def rescore(samples, temperature, policy=POLICY):
  """Scores the sampled tokens as the trainer does.

  Returns:
    For each sampled token: the token, the sampler's two log-probabilities, and
    the trainer's logits and log-probability.
  """
  rows = to_rows(samples)
  logits = np.asarray(forward(policy, rows), np.float64)[:, :-1] / temperature
  rows = jax.device_get(rows)
  mask = rows['loss_mask'][:, 1:]
  assert not rows['loss_mask'][:, 0].any()
  tokens, sampler, behaviour = (
    rows[name][:, 1:][mask]
    for name in ('tokens', 'sampler_logprobs', 'behaviour_logprobs')
  )
  logits = logits[mask]
  logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
  logprobs = np.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0]
  return types.SimpleNamespace(
    tokens=tokens,
    sampler=sampler,
    behaviour=behaviour,
    logits=logits,
    logprobs=logprobs,
  )


@pytest.mark.parametrize('temperature', [0.7, 1.0, 1.3])
def test_sampler_and_trainer_agree(temperature):
  scored = rescore(sample(temperature=temperature), temperature)
  np.testing.assert_allclose(scored.sampler, scored.logprobs, atol=1e-5)
  np.testing.assert_array_equal(scored.sampler, scored.behaviour)
  assert np.isin(scored.tokens, END).any()


def test_truncation_raises_only_behaviour_log_probabilities():
  scored = rescore(sample(top_k=4), 1.0)
  np.testing.assert_allclose(scored.sampler, scored.logprobs, atol=1e-5)
  assert (scored.behaviour > scored.sampler).all()


def test_temperature_zero_takes_the_likeliest_token():
  scored = rescore(sample(temperature=0.0), 1.0)
  np.testing.assert_array_equal(scored.tokens, scored.logits.argmax(axis=-1))
  np.testing.assert_allclose(scored.sampler, scored.logprobs, atol=1e-5)


def test_sampler_and_trainer_agree_in_bfloat16():
  policy = Policy(dataclasses.replace(POLICY.config, dtype='bfloat16'))
  engine = SamplingEngine(
    policy, end_ids=END, pad_id=0, max_response_length=LIMIT
  )
  scored = rescore(sample(engine), 1.0, policy)
  gap = scored.sampler - scored.logprobs
  np.testing.assert_allclose(gap, 0.0, atol=0.1)
  assert np.abs(gap).mean() <= 0.01
  assert np.exp(-gap).mean() == pytest.approx(1.0, abs=1e-3)


def test_masks_cover_tokens_up_to_the_end_token_and_no_padding():
  samples = to_numpy(sample(temperature=1.3))
  tokens, mask = samples.response_tokens, samples.response_mask
  lengths = mask.sum(axis=1)
  np.testing.assert_array_equal(mask, np.arange(LIMIT) < lengths[:, None])
  last = tokens[np.arange(len(tokens)), lengths - 1]
  ended = np.isin(last, END)
  np.testing.assert_array_equal(samples.truncated, ~ended)
  assert (lengths[~ended] == LIMIT).all()
  assert np.isin(tokens, END)[mask].sum() == ended.sum()
  assert (tokens[~mask] == 0).all()
  # The policy may sample the padding token, which counts like any other.
  assert (tokens[mask] == 0).any()
  assert 0 < ended.sum() < len(ended)


def test_ending_on_the_last_token_is_not_truncation():
  engine = make_engine(end_ids=range(VOCAB), max_response_length=1)
  samples = to_numpy(sample(engine))
  assert samples.response_mask.all()
  assert not samples.truncated.any()


def test_responses_depend_on_sequence_ids_and_not_on_rows():
  all_samples = to_numpy(sample())
  order = [3, 0, 7, 1, 6, 2, 5, 4]
  reordered = to_numpy(sample(rows=order))
  rows = np.arange(PROMPTS * GROUP).reshape(PROMPTS, GROUP)[order].reshape(-1)
  jax.tree.map(
    lambda all_rows, values: np.testing.assert_array_equal(
      all_rows[rows], values
    ),
    all_samples,
    reordered,
  )
  some_samples = to_numpy(sample(rows=slice(2, 5)))
  np.testing.assert_array_equal(
    all_samples.response_tokens[2 * GROUP : 5 * GROUP],
    some_samples.response_tokens,
  )
  assert (
    len(np.unique(all_samples.response_tokens, axis=0)) > PROMPTS * GROUP // 2
  )
  with_other_ids = to_numpy(sample(ids=IDS + 1000))
  assert not np.array_equal(
    all_samples.response_tokens, with_other_ids.response_tokens
  )


@pytest.mark.parametrize('shape', [(8,), (4, 2), (2, 2, 2)])
def test_meshes_sample_the_same_as_one_device(shape):
  mesh = make_mesh(shape)
  expected, actual = sample(), sample(make_engine(mesh), params=params_on(mesh))
  np.testing.assert_array_equal(
    expected.response_tokens, actual.response_tokens
  )
  np.testing.assert_array_equal(expected.response_mask, actual.response_mask)
  np.testing.assert_array_equal(expected.truncated, actual.truncated)
  np.testing.assert_allclose(
    expected.sampler_logprobs, actual.sampler_logprobs, atol=1e-5
  )


# Parameters that a tensor axis of 2 splits, and that none does.
@pytest.mark.parametrize('shape', [(1, 4, 2), (1, 8)])
def test_parameters_from_another_mesh_give_the_same_samples(shape):
  # As on a torus, device numbers are not in the mesh's order.
  devices = [jax.devices()[i] for i in (0, 3, 6, 1, 5, 2, 7, 4)]
  mesh = make_mesh(shape, devices)
  engine = make_engine(reshape_mesh(mesh, {'data': -1, 'tensor': 4}))
  expected, actual = sample(), sample(engine, params=params_on(mesh))
  np.testing.assert_array_equal(
    expected.response_tokens, actual.response_tokens
  )
  np.testing.assert_allclose(
    expected.sampler_logprobs, actual.sampler_logprobs, atol=1e-5
  )


def test_rows_that_the_mesh_does_not_divide_are_sampled_the_same():
  mesh = make_mesh((8,))
  actual = sample(make_engine(mesh), rows=slice(0, 1), params=params_on(mesh))
  expected = sample().response_tokens[:GROUP]
  np.testing.assert_array_equal(expected, actual.response_tokens)


def test_rows_without_a_prompt_have_empty_responses():
  prompts, mask = make_prompts()
  mask[3] = False
  samples = to_numpy(
    ENGINE.sample(
      PARAMS,
      prompts,
      mask,
      group_size=GROUP,
      key=KEY,
      sequence_ids=IDS,
      sampling=Sampling.make(),
    )
  )
  has_no_prompt = np.arange(PROMPTS * GROUP) // GROUP == 3
  assert not samples.response_mask[has_no_prompt].any()
  assert not samples.truncated[has_no_prompt].any()
  np.testing.assert_array_equal(
    samples.response_tokens[~has_no_prompt],
    to_numpy(sample()).response_tokens[~has_no_prompt],
  )


@pytest.fixture
def compilations():
  """Events of the compiler, one for each program that is compiled."""
  compiled = []

  def listen(event, duration_secs, **kwargs):
    del duration_secs, kwargs
    if event.endswith('backend_compile_duration'):
      compiled.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  jax.jit(lambda x: x + 1)(jnp.zeros(3))
  assert compiled
  compiled.clear()
  return compiled


def test_sampling_parameters_never_recompile(compilations):
  engine = make_engine()
  sample(engine)
  compilations.clear()
  for temperature in (0.0, 0.7, 1.3):
    for top_p in (0.5, 1.0):
      sample(engine, temperature=temperature, top_p=top_p, top_k=3)
  assert not compilations
  # Another number of prompts: prefill and one segment.
  sample(engine, rows=slice(0, 2))
  assert len(compilations) == 2


@pytest.mark.parametrize('devices', [0, 4])
def test_nothing_is_compiled_after_warm_up(devices, compilations, monkeypatch):
  """The number of slots is reduced meanwhile; the key is another iteration's."""
  slots = PROMPTS * GROUP // max(devices, 1)
  monkeypatch.setattr(layout_module, 'MIN_SLOTS', slots // 2)
  mesh = make_mesh((devices,), jax.devices()[:devices]) if devices else None
  params = params_on(mesh) if mesh else PARAMS
  engine = make_engine(mesh, segment=2)
  engine.warm_up(params, (PROMPTS, LENGTH), group_size=GROUP)
  prompts, mask = make_prompts()
  key, sampling = jax.random.fold_in(KEY, 5), Sampling.make(0.9)
  compilations.clear()
  engine.sample(
    params,
    prompts,
    mask,
    group_size=GROUP,
    key=key,
    sequence_ids=IDS,
    sampling=sampling,
  )
  assert not compilations


def test_kv_cache_is_updated_in_place():
  prompts, _ = make_prompts()
  traced = ENGINE.trace(PARAMS, *prompts.shape, group_size=GROUP)
  program = traced.run.lower().compile()
  config, slots = POLICY.config, LIMIT - 1
  shape = (
    config.num_layers,
    PROMPTS * GROUP,
    config.num_kv_heads,
    slots,
    config.head_dim,
  )
  cache = f'f32[{",".join(map(str, shape))}]'
  text = program.as_text() or ''
  assert cache in text
  assert not re.search(re.escape(cache) + r'\S* copy\(', text)


def test_rollout_rows_join_prompts_and_responses():
  (prompts, mask), samples = make_prompts(), sample()
  count = PROMPTS * GROUP
  rollouts = Rollouts(
    **to_rows(samples),
    sequence_ids=jnp.asarray(IDS),
    group_ids=jnp.asarray(IDS // GROUP),
    source_ids=jnp.asarray(IDS * 0),
    policy_step=jnp.zeros((count, LENGTH + LIMIT), jnp.int32),
    rewards={},
  )
  rollouts, samples = jax.device_get(rollouts), to_numpy(samples)
  for s in range(count):
    prompt = prompts[s // GROUP][mask[s // GROUP]]
    response = samples.response_tokens[s][samples.response_mask[s]]
    is_token, is_response = rollouts.attention_mask[s], rollouts.loss_mask[s]
    tokens = np.concatenate((prompt, response))
    np.testing.assert_array_equal(rollouts.tokens[s][is_token], tokens)
    np.testing.assert_array_equal(rollouts.tokens[s][is_response], response)
    positions = rollouts.positions[s][is_token]
    np.testing.assert_array_equal(positions, np.arange(len(tokens)))
    np.testing.assert_array_equal(
      rollouts.sampler_logprobs[s][is_response],
      samples.sampler_logprobs[s][samples.response_mask[s]],
    )
  assert not (rollouts.loss_mask & ~rollouts.attention_mask).any()


@pytest.mark.usefixtures('no_annotation_checks')
@pytest.mark.parametrize(
  ('changes', 'sentence'),
  [
    ({'end_ids': (16,)}, r'token ids must lie in \[0, 16\), got 16'),
    ({'pad_id': -1}, r'token ids must lie in \[0, 16\), got -1'),
    ({'max_response_length': 0}, 'max_response_length must be .* got 0'),
    ({'slots': -1}, 'slots must be at least 0, got -1'),
    ({'segment': 0}, 'segment must be at least 1, got 0'),
    ({'end_ids': (2.5,)}, 'token ids must be an integer, got 2.5'),
    ({'max_response_length': 2.5}, 'max_response_length must be an integer'),
  ],
)
def test_refuses_invalid_engines(changes, sentence):
  with pytest.raises((TypeError, ValueError), match=sentence):
    make_engine(**changes)


def test_refuses_critics():
  config = dataclasses.replace(POLICY.config, value_head=True)
  with pytest.raises(ValueError, match='must have no value head, got one'):
    SamplingEngine(Policy(config), end_ids=END, pad_id=0, max_response_length=4)


@pytest.mark.usefixtures('no_annotation_checks')
@pytest.mark.parametrize(
  ('ids', 'sentence'),
  [
    (IDS[:-1], r'must be \[S\] = \(32,\), got \(31,\)'),
    (np.asarray(IDS, np.float32), 'must be an array of integers, got float32'),
    # JAX would keep the low 32 bits, all 0, and every response would be the same.
    (np.asarray(IDS, np.int64) << 32, 'must be integers of 32 bits'),
  ],
)
def test_refuses_invalid_sequence_ids(ids, sentence):
  with pytest.raises((TypeError, ValueError), match=f'sequence_ids {sentence}'):
    sample(ids=ids)


@pytest.mark.parametrize(
  ('changes', 'sentence'),
  [
    (
      {'temperature': jnp.float32(-1)},
      'temperature must be finite and at least',
    ),
    ({'temperature': jnp.float32(np.nan)}, 'temperature must be finite and at'),
    (
      {'temperature': jnp.ones(32)},
      r'temperature must be a scalar, got \(32,\)',
    ),
    ({'top_p': jnp.float32(0)}, r'top_p must lie in \(0, 1\], got 0'),
    ({'top_k': jnp.int32(-3)}, 'top_k must be a whole number from 0, got -3'),
  ],
)
def test_refuses_parameters_that_were_made_without_a_check(changes, sentence):
  with pytest.raises(ValueError, match=sentence):
    Sampling.make()._replace(**changes).check()
