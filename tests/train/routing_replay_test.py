# SPDX-License-Identifier: Apache-2.0
"""Routing replay: the trainer uses the experts that the sampler recorded."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fast_compilation import QUICK
from train import toy

from covrl.config import ConfigError
from covrl.data.packing import pack_rows
from covrl.models import ExpertRecordSpec, Experts, Policy, tiny
from covrl.parallel.sharding import make_mesh
from covrl.rollout import Sampling, SamplingEngine, to_rollout_rows
from covrl.train.forward import forward
from covrl.train.rollout_batch import shift_left, to_token_batch
from covrl.train.setup.initial_policy import make_policy_of_size
from covrl.types import Rollouts

# Prompts, their padded length, responses per prompt, tokens of a response at
# most, and the tokens that end one.
PROMPTS, WIDTH, GROUP, LIMIT, END = 4, 6, 4, 8, (3, 5)
POLICY = Policy(
  dataclasses.replace(tiny(16), experts=Experts(count=4, per_token=2))
)
RECORD = ExpertRecordSpec.of(POLICY.config)
PARAMS = POLICY.init(jax.random.key(0))
IDS = np.arange(PROMPTS * GROUP, dtype=np.int32)


def make_engine(mesh=None, **changes: Any):
  return SamplingEngine(
    POLICY,
    mesh,
    end_ids=END,
    pad_id=0,
    max_response_length=LIMIT,
    record_experts=True,
    **{'slots': 8, 'segment': 2, **changes},
  )


ENGINE = make_engine()


def make_prompts():
  """Random prompts padded on the left, and their mask."""
  rng = np.random.default_rng(0)
  prompts = rng.integers(0, 16, (PROMPTS, WIDTH)).astype(np.int32)
  lengths = 1 + rng.integers(0, WIDTH, (PROMPTS, 1))
  return prompts, np.arange(WIDTH) >= WIDTH - lengths


def sample(params, engine=ENGINE, **options):
  """Samples responses to the prompts."""
  return jax.device_get(
    engine.sample(
      params,
      *make_prompts(),
      group_size=GROUP,
      key=jax.random.key(7),
      sequence_ids=IDS,
      sampling=Sampling.make(),
      **options,
    )
  )


def batch_of(samples) -> Any:
  """An iteration's rows of tokens."""
  rows = to_rollout_rows(*make_prompts(), samples, GROUP)
  zeros = np.zeros_like(IDS)
  rows |= {'sequence_ids': IDS, 'group_ids': zeros, 'source_ids': zeros}
  step: Any = np.zeros_like(rows['tokens'])
  return to_token_batch(Rollouts(**rows, policy_step=step, rewards={}))


@functools.cache
def batch_of_same_weights():
  """Rows that the trainer's own parameters have sampled."""
  return batch_of(sample(PARAMS))


@functools.partial(jax.jit, compiler_options=QUICK)
def run(params, rows):
  return forward(POLICY, params, rows, 1.0, 0)


@functools.partial(jax.jit, compiler_options=QUICK)
def own_experts(params, rows):
  """Experts that a policy chooses for the tokens of whole rows."""
  mask = rows.segment_ids > 0
  _, cache = POLICY.prefill(
    params, rows.tokens, rows.positions, mask, record_experts=True
  )
  return cache.experts


def logprobs(params, rows):
  """Log-probabilities by the trainer's forward pass."""
  return np.asarray(run(params, rows).stats.logprobs)


def routed_mask(rows):
  """Tokens that the sampler routes: all but the last of a response."""
  is_token = rows.segment_ids > 0
  return is_token & shift_left(is_token)


def perturb_routers(params):
  """Parameters with other routers."""
  rng = np.random.default_rng(3)
  router = params['layers']['mlp']['router']
  noise = rng.normal(0, 0.1, router.shape).astype(np.float32)
  mlp = params['layers']['mlp'] | {'router': router + noise}
  return params | {'layers': params['layers'] | {'mlp': mlp}}


def test_sampler_records_the_experts_of_each_token():
  rows = batch_of_same_weights()
  assert rows.experts.shape == RECORD.shape(*rows.tokens.shape)
  is_routed = routed_mask(rows)
  np.testing.assert_array_equal((rows.experts > 0).all((2, 3)), is_routed)
  np.testing.assert_array_equal((rows.experts == 0).all((2, 3)), ~is_routed)
  experts = np.asarray(own_experts(PARAMS, rows))
  np.testing.assert_array_equal(
    np.sort(rows.experts[is_routed]), np.sort(experts[is_routed])
  )


def test_equal_weights_give_equal_log_probabilities():
  rows = batch_of_same_weights()
  plain = logprobs(PARAMS, dataclasses.replace(rows, experts=None))
  mask = rows.loss_mask
  replayed = logprobs(PARAMS, rows)
  np.testing.assert_allclose(replayed[mask], plain[mask], atol=1e-6)
  np.testing.assert_allclose(
    replayed[mask], rows.sampler_logprobs[mask], atol=1e-5
  )


def test_trainer_uses_the_experts_of_a_sampler_with_other_weights():
  rows = batch_of(sample(perturb_routers(PARAMS)))
  is_routed = routed_mask(rows)
  experts = np.asarray(own_experts(PARAMS, rows))
  assert (np.sort(experts[is_routed]) != np.sort(rows.experts[is_routed])).any()
  counts = np.asarray(run(PARAMS, rows).routing.counts)
  num_tokens = int((rows.segment_ids > 0).sum())
  for layer, layer_counts in enumerate(counts):
    routed_by_sampler = np.ravel(rows.experts[is_routed][:, layer]) - 1
    routed_by_trainer = layer_counts - np.bincount(
      routed_by_sampler, minlength=4
    )
    # Only the last token of a response is routed by the trainer itself.
    assert (routed_by_trainer >= 0).all()
    assert routed_by_trainer.sum() == 2 * (num_tokens - is_routed.sum())
  # Replay narrows the gap between trainer and sampler.
  mask = rows.loss_mask
  gaps = [
    np.abs(logprobs(PARAMS, scored_rows) - rows.sampler_logprobs)[mask].mean()
    for scored_rows in (rows, dataclasses.replace(rows, experts=None))
  ]
  assert gaps[0] < 0.7 * gaps[1]


def test_packed_rows_use_the_same_experts():
  rows = batch_of(sample(perturb_routers(PARAMS)))
  packed = pack_rows(rows, length=2 * (WIDTH + LIMIT))
  assert len(packed.tokens) < len(rows.tokens)

  def by_token(rows):
    mask = np.asarray(rows.loss_mask)
    order = np.lexsort((rows.positions[mask], rows.sequence_ids[mask]))
    return logprobs(PARAMS, rows)[mask][order]

  np.testing.assert_allclose(by_token(packed), by_token(rows), atol=1e-5)


@pytest.mark.slow
def test_rows_on_a_mesh_record_the_same_experts():
  mesh = make_mesh((2,), jax.devices()[:2])
  shardings = jax.tree.map(
    lambda leaf: leaf.sharding, POLICY.abstract_params(mesh)
  )
  actual = sample(jax.device_put(PARAMS, shardings), make_engine(mesh))
  np.testing.assert_array_equal(actual.experts, sample(PARAMS).experts)


def test_carried_tokens_keep_their_experts():
  calls, other_params = itertools.count(), perturb_routers(PARAMS)
  unfinished = sample(PARAMS, is_enough=lambda: next(calls) >= 1)
  completed = sample(other_params, carried=unfinished)
  rows, unfinished_rows = batch_of(completed), batch_of(unfinished)
  was_routed = routed_mask(unfinished_rows)
  is_new = routed_mask(rows) & ~was_routed
  assert was_routed[:, WIDTH:].any()
  assert is_new[:, WIDTH:].any()
  np.testing.assert_array_equal(
    rows.experts[was_routed], unfinished_rows.experts[was_routed]
  )
  # Others are routed by the newer weights, which also process the tokens before.
  experts = np.asarray(own_experts(other_params, rows))
  np.testing.assert_array_equal(
    np.sort(rows.experts[is_new]), np.sort(experts[is_new])
  )


def test_refuses_a_model_without_experts():
  recipe = toy.recipe()
  recipe.config.train.routing_replay = True
  with pytest.raises(ConfigError, match=r'model must have experts .* got'):
    make_policy_of_size(recipe, 16)
  with pytest.raises(ValueError, match=r'config must have experts .* got'):
    SamplingEngine(
      Policy(tiny(16)),
      end_ids=END,
      pad_id=0,
      max_response_length=LIMIT,
      record_experts=True,
    )


@pytest.mark.parametrize(
  ('policy', 'shape', 'message'),
  [
    # A record of one expert per token would be broadcast.
    (POLICY, (1, 3, 2, 1), r'must be \[B, T, L, k\] = \(1, 3, 2, 2\), got'),
    (Policy(tiny(16)), (1, 3, 2, 2), 'must have experts'),
  ],
)
def test_records_of_another_model_are_refused(policy, shape, message):
  ids, record = jnp.ones((1, 3), jnp.int32), jnp.ones(shape, jnp.uint8)

  def run(params):
    return policy.hidden_and_routing(
      params, ids, positions=ids, segment_ids=ids, recorded_experts=record
    )

  with pytest.raises(ValueError, match=message):
    jax.eval_shape(run, policy.abstract_params())
