# SPDX-License-Identifier: Apache-2.0
"""Values and gradients of the losses against a published implementation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covrl.objectives import (
  WeightMode,
  cispo,
  clipped_surrogate,
  geo_mean,
  gspo,
  sapo,
  token_weights,
)
from covrl.types import TokenStats

# Names of covrl by those of the published implementation.
MODES: dict[str, WeightMode] = {
  'token-mean': 'token-mean',
  'token-sum': 'token-sum',
  'seq-mean-token-mean': 'sequence-mean-token-mean',
  'seq-mean-token-sum': 'sequence-mean-token-sum',
  'seq-mean-token-sum-norm': 'constant-length',
}


@jax.jit
def all_weights(mask, length):
  return {
    mode: token_weights(mask, mode, length=length) for mode in MODES.values()
  }


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradient(loss, options, inputs):
  def objective(logprobs):
    stats = TokenStats(logprobs=logprobs, entropy=jnp.zeros_like(logprobs))
    return loss(stats, **options, **inputs)

  inputs = dict(inputs)
  return jax.value_and_grad(objective, has_aux=True)(inputs.pop('logprobs'))


def run(case, loss, dtype, option_names, mode=None, correction=None):
  """Value, gradient, weights and auxiliary output of a case."""
  mode = mode or MODES[case.options['loss_agg_mode']]
  if correction is None:
    correction = (
      case.input('rollout_is_weights', dtype)
      if 'rollout_is_weights' in case
      else jnp.ones((16, 64), dtype)
    )
  length = jnp.asarray(case.shape[1], dtype)
  weights = all_weights(case.input('response_mask'), length)[mode]
  inputs = {
    'logprobs': case.input('log_prob', dtype),
    'old_logprobs': case.input('old_log_prob', dtype),
    'advantages': case.input('advantages', dtype),
    'weights': weights.astype(dtype) * correction,
  }
  options = {
    name: case.options[source] for name, source in option_names.items()
  }
  (value, aux), gradient = value_and_gradient(loss, options, inputs)
  return value, gradient, inputs['weights'], aux


# Arguments of a loss, and the published options that they correspond to.
CLIP = {'low': 'clip_ratio_low', 'high': 'clip_ratio_high'}
# Loss and its arguments, by the published name.
LOSSES = {
  'vanilla': (clipped_surrogate, {**CLIP, 'dual_clip': 'clip_ratio_c'}),
  'cispo': (cispo, CLIP),
  'sapo': (sapo, {}),
  'gspo': (gspo, CLIP),
}


def check_published(golden, close, function, dtype, relative):
  loss, names = LOSSES[function]
  # That implementation ignores the aggregation mode under SAPO.
  mode = 'sequence-mean-token-mean' if function == 'sapo' else None
  for case in golden(function):
    value, gradient, weights, aux = run(case, loss, dtype, names, mode)
    assert value.dtype == gradient.dtype == dtype
    close(gradient, case.expected('grad_log_prob'), relative, case.name)
    # Terms of the value may cancel: the tolerance is relative to their size.
    magnitude = float(jnp.sum(jnp.abs(weights * aux.score_weight)))
    assert abs(value - case.expected('loss')) <= relative * max(
      magnitude, 1e-3
    ), case.name
    # The reported score weight is the gradient.
    close(-weights * aux.score_weight, gradient, relative, case.name)


@pytest.mark.parametrize('function', LOSSES)
def test_equals_published_losses_in_float32(golden, close, function):
  check_published(golden, close, function, jnp.float32, 1e-6)


@pytest.mark.parametrize('function', LOSSES)
def test_equals_published_losses_in_float64(golden, close, function, x64):
  check_published(golden, close, function, jnp.float64, 1e-12)


def check_geo_mean(golden, close, dtype, relative):
  for case in golden('geo_mean'):
    mask = np.asarray(case.input('response_mask'))
    lengths = mask.sum(1, keepdims=True) + 1e-8
    # That implementation averages over all rows, empty ones included, and
    # uses the geometric mean of the importance weights over the sequence.
    correction = mask / (np.maximum(mask.sum(1, keepdims=True), 1))
    correction = correction / case.shape[0]
    if 'rollout_is_weights' in case:
      log_weights = np.log(
        np.asarray(case.input('rollout_is_weights', 'f8')) + 1e-10
      )
      correction = correction * np.exp(
        (log_weights * mask).sum(1, keepdims=True) / lengths
      )
    value, gradient, weights, aux = run(
      case,
      geo_mean,
      dtype,
      CLIP,
      mode='token-sum',
      correction=jnp.asarray(correction, dtype),
    )
    close(gradient, case.expected('grad_log_prob'), relative, case.name)
    magnitude = float(jnp.sum(jnp.abs(weights * aux.score_weight)))
    assert abs(value - case.expected('loss')) <= relative * max(magnitude, 1e-3)


def test_geo_mean_equals_published_values_in_float32(golden, close):
  check_geo_mean(golden, close, jnp.float32, 1e-6)


def test_geo_mean_equals_published_values_in_float64(golden, close, x64):
  check_geo_mean(golden, close, jnp.float64, 1e-12)
