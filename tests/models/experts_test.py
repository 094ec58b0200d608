# SPDX-License-Identifier: Apache-2.0
"""Mixture of experts against a loop over tokens, and on meshes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fast_compilation import QUICK
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from covrl.models import (
  Experts,
  Lora,
  Policy,
  RoutingStats,
  load_balancing_loss,
  tiny,
)
from covrl.models.cache import DecodeCache
from covrl.models.experts import ExpertRecordSpec, RoutedMLP, mix_experts
from covrl.parallel.sharding import TRAIN_RULES, fitted_sharding, make_mesh

# Sizes of the tokens and experts, and the number of experts of a token.
ROWS, LENGTH, DIM, HIDDEN, EXPERTS, TOP_K = 8, 3, 4, 8, 4, 2
MIX = jax.jit(functools.partial(mix_experts, activation='silu'))
# Logical axes of the arrays of `draw`.
AXES = (
  ('batch', None, None),
  ('batch', None, None),
  ('batch', None, None),
  ('expert', 'embed', 'mlp'),
  ('expert', 'embed', 'mlp'),
  ('expert', 'mlp', 'embed'),
)


def draw(seed=0):
  """Tokens, choices, shares and matrices; the last expert is never chosen."""
  rng = np.random.default_rng(seed)
  chosen = np.argsort(rng.random((ROWS, LENGTH, EXPERTS - 1)), axis=-1)
  arrays = (
    rng.normal(size=(ROWS, LENGTH, DIM)),
    chosen[..., :TOP_K],
    rng.random((ROWS, LENGTH, TOP_K)),
    rng.normal(size=(EXPERTS, DIM, HIDDEN)),
    rng.normal(size=(EXPERTS, DIM, HIDDEN)),
    rng.normal(size=(EXPERTS, HIDDEN, DIM)),
  )
  return [
    jnp.asarray(x, jnp.int32 if x.dtype.kind == 'i' else jnp.float32)
    for x in arrays
  ]


def loop_over_tokens(x, chosen, shares, gate, up, down):
  y = np.zeros(x.shape)
  for b, t, k in np.ndindex(chosen.shape):
    expert = chosen[b, t, k]
    gated = x[b, t] @ gate[expert]
    hidden = gated / (1 + np.exp(-gated)) * (x[b, t] @ up[expert])
    y[b, t] += shares[b, t, k] * (hidden @ down[expert])
  return y


def test_equals_a_loop_over_tokens():
  arrays = draw()
  expected = loop_over_tokens(*map(np.asarray, arrays))
  np.testing.assert_allclose(MIX(*arrays), expected, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, EXPERTS - 1), st.integers(0, 99))
def test_no_token_is_dropped_if_all_choose_one_expert(expert, seed):
  x, chosen, *floats = draw(seed)
  chosen = jnp.full_like(chosen, expert)
  expected = loop_over_tokens(*map(np.asarray, (x, chosen, *floats)))
  np.testing.assert_allclose(
    MIX(x, chosen, *floats), expected, rtol=1e-6, atol=1e-5
  )


def test_choices_out_of_range_add_zero():
  x, chosen, *floats = draw()
  out_of_range = jnp.where(
    chosen == 0, -1, jnp.where(chosen == 1, EXPERTS, chosen)
  )
  is_in_range = (chosen != 0) & (chosen != 1)
  shares = floats[0] * is_in_range
  expected = loop_over_tokens(
    *map(np.asarray, (x, chosen, shares, *floats[1:]))
  )
  np.testing.assert_allclose(MIX(x, out_of_range, *floats), expected, atol=1e-5)


def value_and_gradients(arrays):
  """The result, and gradients of all float arguments."""
  x, chosen, *floats = arrays

  def loss(x, *floats):
    y = mix_experts(x, chosen, *floats, activation='silu')
    return jnp.sum(jnp.sin(y)), y

  return jax.grad(loss, argnums=range(5), has_aux=True)(x, *floats)


# Meshes that split experts, tokens over experts' devices, hidden units, or not.
@pytest.mark.parametrize(
  ('shape', 'rows'),
  [
    ((1, 2, 1, 4), ROWS),
    ((2, 1, 2, 2), ROWS),
    ((1, 1, 2, 4), 3),
    ((1, 1, 1, 8), ROWS),
    ((1, 4, 2, 1), ROWS),
  ],
)
def test_meshes_give_the_same_results_and_gradients(shape, rows):
  x, chosen, shares, *weights = draw()
  arrays = [x[:rows], chosen[:rows], shares[:rows], *weights]
  expected = jax.jit(value_and_gradients)(arrays)
  mesh = make_mesh(shape)
  placed = [
    jax.device_put(leaf, fitted_sharding(mesh, axes, leaf.shape, TRAIN_RULES))
    for leaf, axes in zip(arrays, AXES, strict=True)
  ]
  with jax.set_mesh(mesh):
    actual = jax.jit(value_and_gradients)(placed)
  for ours, theirs in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
  # The expert that is never chosen has a gradient of 0.
  for gradient in actual[0][2:]:
    np.testing.assert_array_equal(gradient[EXPERTS - 1], 0)


def test_routing_statistics_exclude_padding():
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.normal(size=(2, 3, EXPERTS)), jnp.float32)
  probabilities = jax.nn.softmax(logits)
  _, chosen = jax.lax.top_k(probabilities, TOP_K)
  is_token = jnp.array([[True, True, False], [False, True, False]])
  routing = RoutingStats.from_choices(probabilities, chosen, is_token)
  token_probabilities = np.asarray(probabilities)[np.asarray(is_token)]
  hits = np.asarray(chosen)[np.asarray(is_token)].ravel()
  assert routing.tokens == 3
  np.testing.assert_array_equal(
    routing.counts, np.bincount(hits, minlength=EXPERTS)
  )
  np.testing.assert_allclose(
    routing.mass, token_probabilities.sum(0), rtol=1e-6
  )
  entropy = -(token_probabilities * np.log(token_probabilities)).sum()
  np.testing.assert_allclose(routing.entropy, entropy, rtol=1e-6)


def routing_of(counts, mass):
  counts, mass = jnp.asarray(counts), jnp.asarray(mass, jnp.float32)
  tokens = jnp.round(mass.sum(-1)).astype(jnp.int32)
  return RoutingStats(tokens, counts, mass, jnp.zeros(len(counts)))


def test_load_balancing_loss_is_one_for_equal_use_and_larger_for_unequal_use():
  equal = routing_of([[6, 6, 6, 6]] * 2, [[3.0, 3.0, 3.0, 3.0]] * 2)
  assert float(load_balancing_loss(equal.mass, equal)) == pytest.approx(1.0)
  # Expected: 4 (12/24 · 6/12 + 12/24 · 6/12) = 2 in one layer, 1 in the other.
  uneven = routing_of(
    [[12, 12, 0, 0], [6, 6, 6, 6]], [[6.0, 6.0, 0.0, 0.0], [3.0] * 4]
  )
  assert float(load_balancing_loss(uneven.mass, uneven)) == pytest.approx(1.5)
  # Disjoint sets of tokens add up; gradients reduce the mass of busy experts.
  part = 0.25 * uneven.mass
  rest = uneven.mass - part
  total = load_balancing_loss(part, uneven) + load_balancing_loss(rest, uneven)
  assert float(total) == pytest.approx(1.5)
  gradient = jax.grad(lambda mass: load_balancing_loss(mass, uneven))(
    uneven.mass
  )
  assert gradient[0, 0] > gradient[1, 0] > gradient[0, 2] == 0


def test_cached_decoding_equals_the_full_forward():
  config = dataclasses.replace(tiny(16), experts=Experts(count=4, per_token=2))
  policy = Policy(config)
  params = policy.init(jax.random.key(0))
  tokens = jnp.asarray(np.random.default_rng(1).integers(0, 16, (3, 6)))
  expected = jax.jit(policy.logits)(params, tokens)
  positions = jnp.broadcast_to(jnp.arange(5), (3, 5))
  hidden, prompts = jax.jit(policy.prefill)(
    params, tokens[:, :5], positions, jnp.ones((3, 5), bool)
  )
  np.testing.assert_allclose(
    policy.project(params, hidden), expected[:, 4], atol=1e-5
  )
  hidden, _ = jax.jit(policy.decode)(
    params, tokens[:, 5], DecodeCache.empty(prompts, jnp.arange(3), 1)
  )
  np.testing.assert_allclose(
    policy.project(params, hidden), expected[:, 5], atol=1e-5
  )


def test_remat_changes_no_gradient_on_a_mesh():
  experts = Experts(count=4, per_token=2)
  mesh = make_mesh({'data': 2, 'expert': 4})
  tokens = jnp.asarray(np.random.default_rng(1).integers(0, 16, (8, 6)))
  config = dataclasses.replace(tiny(16), experts=experts)
  params = Policy(config).init(jax.random.key(0), mesh)

  def gradient(remat):
    policy = Policy(dataclasses.replace(config, remat=remat))

    def loss(params):
      return jnp.sum(jnp.sin(policy.logits(params, tokens)))

    with jax.set_mesh(mesh):
      return jax.jit(jax.grad(loss))(params)

  without_remat = gradient('nothing')
  for remat in ('cheap', 'gate'):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
      gradient(remat),
      without_remat,
    )


def replayed(policy, params, tokens, record, **options):
  """Hidden states of whole rows whose experts are given."""
  rows = {
    'positions': jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape),
    'segment_ids': jnp.ones_like(tokens),
  }
  run = jax.jit(
    policy.hidden_and_routing,
    static_argnames='one_sequence',
    compiler_options=QUICK,
  )
  return run(params, tokens, **rows | options, recorded_experts=record)


def test_recorded_experts_take_the_place_of_the_likeliest():
  experts = Experts(count=4, per_token=2)
  policy = Policy(dataclasses.replace(tiny(16), experts=experts))
  params, other_params = (policy.init(jax.random.key(seed)) for seed in (0, 1))
  record_format = ExpertRecordSpec.of(policy.config)
  tokens = jnp.asarray(np.random.default_rng(1).integers(0, 16, (3, 6)))
  positions = jnp.broadcast_to(jnp.arange(5), (3, 5))
  prefill, decode = (
    jax.jit(functools.partial(run, record_experts=True), compiler_options=QUICK)
    for run in (policy.prefill, policy.decode)
  )
  mask = jnp.ones((3, 5), bool)
  _, prompts = prefill(other_params, tokens[:, :5], positions, mask)
  recorded = prompts.experts
  assert recorded.shape == record_format.shape(3, 5)
  assert recorded.dtype == record_format.dtype
  in_chunks = functools.partial(policy.prefill, chunk=2, record_experts=True)
  _, chunked = jax.jit(in_chunks, compiler_options=QUICK)(
    other_params, tokens[:, :5], positions, mask
  )
  np.testing.assert_array_equal(chunked.experts, recorded)
  cache = DecodeCache.empty(prompts._replace(experts=None), jnp.arange(3), 1)
  _, cache = decode(other_params, tokens[:, 5], cache)
  recorded = jnp.concatenate((recorded, cache.experts[:, None]), axis=1)
  # A policy's own experts, and none, give what it computes itself.
  own_experts_output, _ = replayed(policy, other_params, tokens, None)
  for experts_or_empty in (recorded, record_format.empty(3, 6)):
    actual, _ = replayed(policy, other_params, tokens, experts_or_empty)
    np.testing.assert_allclose(actual, own_experts_output, atol=1e-6)
  # The recorded experts of another policy are used, and not its own.
  actual, routing = replayed(policy, params, tokens, recorded)
  expected = np.stack(
    [
      np.bincount(np.ravel(recorded[:, :, layer]) - 1, minlength=4)
      for layer in range(2)
    ]
  )
  np.testing.assert_array_equal(routing.counts, expected)
  own_output, routing = replayed(policy, params, tokens, None)
  assert (routing.counts != expected).any()
  assert np.abs(actual - own_output).max() > 1e-3
  # Rows that are rolled for a kernel, and padding that was not recorded.
  wide = jnp.pad(tokens, ((0, 0), (2, 0)))
  rows = {
    'positions': jnp.maximum(jnp.arange(8) - 2, 0) * jnp.ones_like(wide),
    'segment_ids': (jnp.arange(8) >= 2) * jnp.ones_like(wide),
    'one_sequence': True,
  }
  padded, _ = replayed(
    policy,
    params,
    wide,
    jnp.pad(recorded, ((0, 0), (2, 0), (0, 0), (0, 0))),
    **rows,
  )
  np.testing.assert_allclose(padded[:, 2:], actual, atol=1e-5)


@pytest.mark.parametrize('normalised', [True, False])
def test_gates_of_recorded_experts_are_those_of_the_router(normalised):
  experts = Experts(count=4, per_token=2, normalised=normalised)
  config = dataclasses.replace(tiny(16), experts=experts)
  layer = RoutedMLP(config, rngs=nnx.Rngs(0))
  rng = np.random.default_rng(2)
  x = jnp.asarray(rng.normal(size=(2, 3, config.model_dim)), jnp.float32)
  expert_ids = np.argsort(rng.random((2, 3, 4)), axis=-1)[..., :2]
  actual, _, record = layer(x, None, jnp.asarray(expert_ids + 1, jnp.uint8))
  np.testing.assert_array_equal(record, expert_ids + 1)
  logits = np.asarray(x) @ np.asarray(layer.router[...])
  gates = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  gates = np.take_along_axis(gates, expert_ids, axis=-1)
  if normalised:
    gates = gates / gates.sum(-1, keepdims=True)
  weights = (np.asarray(w[...]) for w in (layer.gate, layer.up, layer.down))
  expected = loop_over_tokens(np.asarray(x), expert_ids, gates, *weights)
  np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_refuses_invalid_options():
  with pytest.raises(ValueError, match='config must have experts'):
    ExpertRecordSpec.of(tiny(16))
  with pytest.raises(ValueError, match=r'must be 1 to 4, .* got 5'):
    Experts(count=4, per_token=5)
  experts = Experts(count=4, per_token=2)
  lora = Lora(rank=1, alpha=1.0, targets=('query', 'up'))
  with pytest.raises(ValueError, match=r"output only, got \['up'\]"):
    dataclasses.replace(tiny(16), experts=experts, lora=lora)
