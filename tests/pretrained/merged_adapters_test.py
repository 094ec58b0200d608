# SPDX-License-Identifier: Apache-2.0
"""Rounding of adapters that are merged into weights of fewer digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pretrained.fixtures import MODELS
from pretrained.text_models import edit

from covrl.cli import main
from covrl.models.lora import Lora, lost_change
from covrl.pretrained import (
  convert,
  load_pretrained,
  save_adapters,
  save_pretrained,
)

LORA = Lora(rank=2, alpha=1.0)


@pytest.fixture(autouse=True)
def in_directory_of_models(monkeypatch):
  """Adapters name their base model relative to the working directory."""
  monkeypatch.chdir(MODELS)


def small_adapters(dtype):
  """A policy whose adapters change the weights a little, and its parameters."""
  policy, params = load_pretrained('qwen2_lora', dtype=dtype)
  adapters, frozen = policy.split(params)
  adapters = jax.tree.map(lambda leaf: 0.02 * leaf, adapters)
  return policy, policy.join(adapters, frozen)


def change(policy, params, directory):
  """Changes from the base: those of the written weights, and the exact ones."""
  _, written = load_pretrained(directory, dtype='float32')
  wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
  base = policy.base.split(policy.split(wide)[1]['base'])[0]
  exact = policy.merge(wide)
  return (
    np.concatenate([np.ravel(a - b) for a, b in zip(*pair, strict=True)])
    for pair in (
      (jax.tree.leaves(written), jax.tree.leaves(base)),
      (jax.tree.leaves(exact), jax.tree.leaves(base)),
    )
  )


def test_the_lost_share_is_that_of_the_written_weights(tmp_path):
  policy, params = small_adapters('bfloat16')
  messages = []
  convert(
    policy,
    params,
    tmp_path / 'out',
    output_format='model',
    warn=messages.append,
  )
  kept, exact = change(policy, params, tmp_path / 'out')
  expected = 1 - kept @ exact / (exact @ exact)
  assert 0.1 < expected < 0.9
  assert policy.config.lora is not None
  assert lost_change(params, policy.config.lora) == pytest.approx(
    expected, abs=1e-3
  )
  (message,) = messages
  assert message.startswith(f'weights of bfloat16 lose {expected:.0%} of the')
  assert '--dtype=float32' in message


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_share_counts_each_rounding(dtype):
  # Of this size XLA leaves out roundings within a program.
  keys = jax.random.split(jax.random.key(0), 3)
  weight, a, b = (
    jax.random.normal(key, shape)
    for key, shape in zip(keys, [(64, 64), (64, 2), (2, 64)], strict=True)
  )
  # Integers up to 256 are numbers of bfloat16.
  weight = jnp.round(64 * weight).astype(dtype)
  change = LORA.scale * a @ b
  kept = (weight + change).astype('bfloat16').astype(np.float32) - np.asarray(
    weight.astype('bfloat16'), np.float32
  )
  expected = 1 - np.vdot(kept, change) / np.vdot(change, change)
  adapter = {'a': a[None], 'b': b[None]}
  layer = {'up': weight[None], 'up_adapter': adapter}
  share = lost_change(layer, LORA, 'bfloat16')
  assert abs(expected) > 1e-3
  assert share == pytest.approx(expected, abs=1e-4)


def test_weights_of_float32_keep_all(tmp_path):
  policy, params = small_adapters('bfloat16')
  convert(
    policy,
    params,
    tmp_path / 'out',
    output_format='model',
    dtype='float32',
    warn=pytest.fail,
  )
  kept, exact = change(policy, params, tmp_path / 'out')
  np.testing.assert_allclose(kept, exact, atol=1e-7)


def test_weights_are_rounded_once_to_fewer_digits(tmp_path):
  policy, params = small_adapters('float32')
  convert(
    policy,
    params,
    tmp_path / 'out',
    output_format='model',
    dtype='bfloat16',
    # Weights between the numbers of bfloat16 are rounded up as often as down.
    warn=pytest.fail,
  )
  _, written = load_pretrained(tmp_path / 'out')
  exact = policy.merge(params)
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)),
    written,
    exact,
  )


def test_adapters_in_their_own_format_are_written_without_a_warning(tmp_path):
  policy, params = small_adapters('bfloat16')
  convert(
    policy,
    params,
    tmp_path / 'out',
    output_format='adapter',
    warn=pytest.fail,
  )


def test_saving_and_the_command_warn_too(tmp_path, capsys):
  policy, params = small_adapters('bfloat16')
  with pytest.warns(UserWarning, match='of bfloat16 lose'):
    save_pretrained(tmp_path / 'saved', policy, params)
  save_pretrained(
    tmp_path / 'base', policy.base, policy.split(params)[1]['base']
  )
  save_adapters(tmp_path / 'adapters', policy, params)
  config = tmp_path / 'adapters' / 'adapter_config.json'
  edit(config, base_model_name_or_path=str(tmp_path / 'base'))
  arguments = ['convert', str(tmp_path / 'adapters')]
  main([*arguments, str(tmp_path / 'narrow')])
  assert 'warning: weights of bfloat16 lose' in capsys.readouterr().err
  main([*arguments, str(tmp_path / 'wide'), '--dtype=float32'])
  assert 'lose' not in capsys.readouterr().err


def test_adapters_that_change_nothing_lose_nothing():
  layer = {'up': jnp.ones((3, 4, 5), jnp.bfloat16)}
  adapter = {'a': jnp.ones((3, 4, 2)), 'b': jnp.zeros((3, 2, 5))}
  assert lost_change({'mlp': layer | {'up_adapter': adapter}}, LORA) == 0
