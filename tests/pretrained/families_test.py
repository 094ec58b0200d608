# SPDX-License-Identifier: Apache-2.0
"""Model families: logits, gradients and continuations equal transformers'."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pretrained.fixtures import MODELS, NAMES, golden, loaded, tensors_of

from covrl.models import Experts, Policy, load_balancing_loss
from covrl.parallel.sharding import make_mesh, shard_batch
from covrl.pretrained import load_pretrained, save_pretrained
from covrl.rollout import Sampling, SamplingEngine

# Tokens of a prompt, of a response, and of padding.
PROMPT, RESPONSE, PAD = 8, 32, 3


@functools.cache
def logits_and_gradient(name):
  """Logits of the golden tokens and the gradient of their mean NLL."""
  policy, params = loaded(name)
  tokens = jnp.asarray(golden(name)['tokens'])

  def loss(params):
    logits = policy.logits(params, tokens)
    logprobs = jax.nn.log_softmax(logits[:, :-1])
    chosen = jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1)
    return -jnp.mean(chosen), logits

  gradient, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
  return np.asarray(logits), gradient


@pytest.mark.parametrize('name', NAMES)
def test_logits_equal_those_of_transformers(name):
  logits, _ = logits_and_gradient(name)
  np.testing.assert_allclose(logits, golden(name)['logits'], atol=1e-4)


@pytest.mark.parametrize('name', NAMES)
def test_gradients_equal_those_of_torch(name, tmp_path):
  policy, _ = loaded(name)
  _, gradient = logits_and_gradient(name)
  # The gradient is saved like parameters, under their tensor names.
  save_pretrained(tmp_path / 'gradient', policy, gradient)
  actual = tensors_of(tmp_path / 'gradient')
  expected = {
    tensor.removeprefix('gradient/'): value
    for tensor, value in golden(name).items()
    if tensor.startswith('gradient/')
  }
  assert actual.keys() == expected.keys()
  for tensor, value in expected.items():
    scale = np.abs(value).max()
    assert scale > 0, tensor
    np.testing.assert_allclose(
      actual[tensor], value, rtol=0, atol=1e-3 * scale, err_msg=tensor
    )


@pytest.mark.parametrize('name', NAMES)
def test_sampler_continues_like_transformers(name):
  policy, params = loaded(name)
  greedy = golden(name)['greedy']
  engine = SamplingEngine(
    policy, end_ids=(), pad_id=0, max_response_length=RESPONSE
  )
  # The second row is the same prompt, padded on the left.
  prompts = np.zeros((2, PROMPT + PAD), np.int32)
  prompts[0, PAD:] = greedy[:PROMPT]
  prompts[1, PAD:] = greedy[:PROMPT]
  prompts[0, :PAD] = 9
  mask = np.zeros(prompts.shape, bool)
  mask[:, PAD:] = True
  samples = engine.sample(
    params,
    prompts,
    mask,
    group_size=1,
    key=jax.random.key(0),
    sequence_ids=np.arange(2, dtype=np.int32),
    sampling=Sampling.make(0.0),
  )
  for row in np.asarray(samples.response_tokens):
    np.testing.assert_array_equal(row, greedy[PROMPT:])


def logits_of(policy, params, tokens, mask):
  """Returns the logits of rows with masked padding."""
  positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
  hidden = jax.jit(policy.hidden)(
    params, tokens, positions=positions, segment_ids=mask * 1
  )
  return policy.project(params, hidden)


@pytest.mark.parametrize('name', ['qwen2_yarn', 'gemma3', 'mixtral'])
def test_left_padding_changes_nothing(name):
  policy, params = loaded(name)
  tokens = jnp.asarray(golden(name)['tokens'])
  pad = jnp.full((2, PAD), 9, jnp.int32)
  padded = jnp.concatenate((pad, tokens), axis=1)
  mask = jnp.arange(padded.shape[1]) >= PAD
  mask = jnp.broadcast_to(mask, padded.shape)
  logits = logits_of(policy, params, padded, mask)[:, PAD:]
  np.testing.assert_allclose(logits, golden(name)['logits'], atol=1e-4)


# Tensor axes larger than the number of key heads or experts, too.
MESHES = [
  *((name, (1, 2, 4)) for name in NAMES),
  ('qwen2_yarn', (1, 1, 8)),
  ('gemma3', (1, 1, 8)),
  ('qwen3_moe', (1, 2, 1, 4)),
  ('mixtral', (2, 1, 2, 2)),
]


@pytest.mark.parametrize(('name', 'shape'), MESHES)
def test_sharded_logits_equal_single_device_logits(name, shape):
  mesh = make_mesh(shape)
  policy, params = load_pretrained(MODELS / name, mesh, dtype='float32')
  for leaf, abstract in zip(
    *map(jax.tree.leaves, (params, policy.abstract_params(mesh))), strict=True
  ):
    assert leaf.sharding == abstract.sharding
  tokens = jnp.tile(golden(name)['tokens'], (4, 1))
  with jax.set_mesh(mesh):
    logits = jax.jit(policy.logits)(params, shard_batch(tokens, mesh))
  np.testing.assert_allclose(logits[:2], golden(name)['logits'], atol=1e-4)


# Features that must affect logits at these lengths for the tests above to
# cover them.
@pytest.mark.parametrize(
  ('name', 'change'),
  [
    ('qwen2_yarn', {'windows': ()}),
    ('qwen2_yarn', {'rope_scaling': None}),
    ('llama2', {'rope_scaling': None}),
    ('llama3', {'rope_scaling': None}),
    ('mistral', {'windows': ()}),
    ('gemma2', {'windows': ()}),
    ('gemma2', {'attention_soft_cap': None}),
    ('gemma2', {'logit_soft_cap': None}),
    ('gemma2', {'attention_scale': None}),
    ('gemma3', {'local_rope_theta': None}),
    ('gemma3', {'rope_scaling': None}),
    ('qwen3_moe', {'experts': Experts(count=8, per_token=3, normalised=False)}),
    ('mixtral', {'experts': Experts(count=4, per_token=1)}),
  ],
)
def test_features_of_families_affect_logits(name, change):
  policy, params = loaded(name)
  other = Policy(dataclasses.replace(policy.config, **change))
  tokens = jnp.asarray(golden(name)['tokens'])
  logits = jax.jit(other.logits)(params, tokens)
  assert np.abs(logits - golden(name)['logits']).max() > 1e-2


@pytest.mark.parametrize('name', ['qwen3_moe', 'mixtral'])
def test_load_balancing_loss_equals_that_of_transformers(name):
  policy, params = loaded(name)
  tokens = jnp.asarray(golden(name)['tokens'])
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  _, routing = jax.jit(policy.hidden_and_routing)(
    params, tokens, positions=positions, segment_ids=jnp.ones_like(tokens)
  )
  balance = load_balancing_loss(routing.mass, routing)
  np.testing.assert_allclose(balance, golden(name)['balance'].mean(), rtol=1e-5)
