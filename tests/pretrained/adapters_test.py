# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters: comparison with PEFT, reading and writing."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pretrained.fixtures import (
  MODELS,
  assert_trees_equal,
  golden,
  loaded,
  tensors_of,
)

from covrl.models import Lora
from covrl.models.lora import TARGETS
from covrl.parallel.sharding import make_mesh, shard_batch
from covrl.pretrained import (
  load_params,
  load_policy,
  load_pretrained,
  save_adapters,
  save_pretrained,
  with_source_dtype,
)

NAMES = ('qwen2_lora', 'mistral_lora')


@pytest.fixture(autouse=True)
def models_directory(monkeypatch):
  """Makes the adapters' relative paths to their base models valid."""
  monkeypatch.chdir(MODELS)


def edited_copy(name, tmp_path, **fields):
  """Copies an adapter and changes fields of its adapter_config.json."""
  copy = shutil.copytree(MODELS / name, tmp_path / name)
  file = copy / 'adapter_config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | fields))
  return copy


@pytest.mark.parametrize('name', NAMES)
def test_logits_and_gradient_equal_those_of_peft(name, tmp_path):
  policy, params = loaded(name)
  tokens = jnp.asarray(golden(name)['tokens'])
  trainable, frozen = policy.split(params)

  def loss(trainable):
    logits = policy.logits(policy.join(trainable, frozen), tokens)
    logprobs = jax.nn.log_softmax(logits[:, :-1])
    chosen = jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1)
    return -jnp.mean(chosen), logits

  gradient, logits = jax.jit(jax.grad(loss, has_aux=True))(trainable)
  np.testing.assert_allclose(logits, golden(name)['logits'], atol=1e-4)
  # The gradient is saved like adapters, under their tensor names.
  save_adapters(tmp_path / 'gradient', policy, gradient)
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
      actual[tensor], value, atol=1e-3 * scale, err_msg=tensor
    )


@pytest.mark.parametrize('name', NAMES)
def test_merged_adapters_give_the_same_logits(name, tmp_path):
  policy, params = loaded(name)
  save_pretrained(tmp_path / 'merged', policy, params)
  merged, merged_params = load_pretrained(tmp_path / 'merged')
  base, _ = loaded(policy.origin.rpartition('/')[2])
  assert merged.config == base.config
  logits = jax.jit(merged.logits)(merged_params, golden(name)['tokens'])
  np.testing.assert_allclose(logits, golden(name)['logits'], atol=1e-4)


@pytest.mark.parametrize('name', NAMES)
def test_round_trip_is_bit_exact(name, tmp_path):
  policy, params = load_pretrained(name)
  save_adapters(tmp_path / 'again', policy, params)
  before, after = (tensors_of(d) for d in (MODELS / name, tmp_path / 'again'))
  assert before.keys() == after.keys()
  for tensor, value in before.items():
    assert value.dtype == after[tensor].dtype == np.float32
    np.testing.assert_array_equal(value, after[tensor])
  reloaded, reloaded_params = load_pretrained(tmp_path / 'again')
  assert reloaded == policy
  assert_trees_equal(params, reloaded_params)


def test_lora_config_lists_the_present_targets():
  all_matrices, two_matrices = (load_policy(name).config.lora for name in NAMES)
  assert all_matrices is not None
  assert two_matrices is not None
  assert sorted(all_matrices.targets) == sorted(TARGETS)
  assert (all_matrices.rank, all_matrices.scale) == (3, 5 / 3)
  assert sorted(two_matrices.targets) == ['query', 'value']
  # rsLoRA scales by the square root of the rank.
  assert (two_matrices.rank, two_matrices.scale) == (2, pytest.approx(2**-0.5))


@pytest.mark.parametrize('shape', [(2, 2, 2), (1, 1, 8)])
def test_sharded_adapters_give_the_same_logits(shape):
  mesh = make_mesh(shape)
  policy, params = load_pretrained('qwen2_lora', mesh, dtype='float32')
  for leaf, abstract in zip(
    *map(jax.tree.leaves, (params, policy.abstract_params(mesh))), strict=True
  ):
    assert leaf.sharding == abstract.sharding
  tokens = jnp.asarray(golden('qwen2_lora')['tokens'])
  with jax.set_mesh(mesh):
    tokens = tokens if shape[0] == 1 else jnp.tile(tokens, (2, 1))
    logits = jax.jit(policy.logits)(params, shard_batch(tokens, mesh))
  np.testing.assert_allclose(
    logits[:2], golden('qwen2_lora')['logits'], atol=1e-4
  )
  merged = policy.merge(params)
  for leaf, abstract in zip(
    *map(jax.tree.leaves, (merged, policy.base.abstract_params(mesh))),
    strict=True,
  ):
    assert leaf.sharding == abstract.sharding


def test_adapters_stay_float32_beside_bfloat16_matrices():
  policy, params = load_pretrained('qwen2_lora', dtype='bfloat16')
  adapters, frozen = policy.split(params)
  assert dtypes(adapters) == {'float32'}
  assert dtypes(frozen) == dtypes(policy.merge(params)) == {'bfloat16'}


def test_merged_weights_have_the_dtype_of_the_source():
  policy, params = load_pretrained('qwen2_lora', dtype='bfloat16')
  float32_policy, float32_params = with_source_dtype(
    policy, params, 'qwen2_lora'
  )
  assert float32_policy.config.param_dtype == 'float32'
  assert float32_policy.config.dtype == 'bfloat16'
  merged = float32_policy.merge(float32_params)
  assert dtypes(merged) == {'float32'}
  exact, exact_params = loaded('qwen2_lora')
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
    merged,
    exact.merge(exact_params),
  )
  assert with_source_dtype(exact, exact_params, 'qwen2_lora')[1] is exact_params


def dtypes(tree):
  """Returns the dtypes of the arrays of a tree."""
  return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      {'peft_type': 'IA3'},
      r'adapter_config\.json: peft_type must be LORA, got IA3',
    ),
    ({'bias': 'all'}, r"bias must be 'none' for its adapters .* got 'all'"),
    ({'use_dora': True}, 'use_dora must be absent .* got True'),
    ({'rank_pattern': {'q_proj': 4}}, 'rank_pattern must be absent'),
    ({'modules_to_save': ['lm_head']}, 'modules_to_save must be absent'),
    ({'init_lora_weights': 'pissa'}, "init_lora_weights .* got 'pissa'"),
    ({'unknown_field': 1}, 'unknown_field must be absent .* got 1'),
    ({'base_model_name_or_path': None}, 'must name its model as base_model'),
    (
      {'r': 4},
      r'lora_A\.weight must have shape \(4, 16\), got \(3, 16\)',
    ),
    (
      {'base_model_name_or_path': 'mistral'},
      r'lora_B\.weight must have shape \(16, 3\), got \(8, 3\)',
    ),
  ],
)
def test_refuses_invalid_adapter_files(fields, message, tmp_path):
  copy = edited_copy('qwen2_lora', tmp_path, **fields)
  with pytest.raises(ValueError, match=message):
    load_pretrained(copy)


@pytest.mark.parametrize(
  ('fields', 'missing'),
  [
    ({'target_modules': ['q_proj', 'v_proj', 'up_proj']}, 'up_proj'),
    ({'target_modules': 'all-linear'}, '[a-z]+_proj'),
    ({'target_modules': ['v_proj', 'q_proj', 'self_attn.o_proj']}, 'o_proj'),
  ],
)
def test_refuses_targets_without_tensors(fields, missing, tmp_path):
  copy = edited_copy('mistral_lora', tmp_path, **fields)
  with pytest.raises(
    ValueError,
    match=f'target_modules must have adapters, got none of ({missing})',
  ):
    load_pretrained(copy)


def test_targets_that_a_model_lacks_or_excludes_need_no_tensors(tmp_path):
  copy = edited_copy(
    'mistral_lora',
    tmp_path,
    target_modules=['q_proj', 'v_proj', 'up_proj', 'other_proj'],
    exclude_modules=['up_proj'],
  )
  lora = load_policy(copy).config.lora
  assert lora is not None
  assert sorted(lora.targets) == ['query', 'value']


def test_refuses_adapters_of_another_policy():
  base = load_policy('qwen2')
  with pytest.raises(ValueError, match='must have the adapters of the policy'):
    load_params('qwen2_lora', base)
  policy = load_policy('qwen2_lora')
  with pytest.raises(ValueError, match=r'of the policy, Lora\(.*got None'):
    load_params('qwen2', policy)


def test_refuses_to_write_missing_adapters(tmp_path):
  policy, params = loaded('qwen2')
  with pytest.raises(ValueError, match='the policy must have adapters'):
    save_adapters(tmp_path / 'out', policy, params)
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'rank': 0}, 'rank of adapters must be at least 1, got 0'),
    ({'alpha': 0.0}, 'alpha of adapters must be positive, got 0'),
    (
      {'targets': ('q_proj',)},
      r"targets .* must be a tuple of some of .*\('q_proj',\)",
    ),
    (
      {'targets': ()},
      r'targets of adapters must be a tuple of some of .*got \(\)',
    ),
  ],
)
def test_refuses_invalid_adapter_settings(change, message):
  with pytest.raises(ValueError, match=message):
    Lora(**({'rank': 1, 'alpha': 1.0} | change))
