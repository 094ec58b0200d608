# SPDX-License-Identifier: Apache-2.0
"""Fields of `config.json`: impossible, absent and contradictory ones."""

import json

import pytest
from pretrained.fixtures import (
  MODELS,
  copy_of,
  edit_config,
)

from covrl.models import LinearScaling, YarnScaling
from covrl.pretrained import (
  load_policy,
)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'num_hidden_layers': 10**9}, 'of 1 to 4096, got 1000000000'),
    ({'num_hidden_layers': 2.0}, 'must be an integer of 1 to 4096, got 2.0'),
    ({'num_hidden_layers': True}, 'num_hidden_layers must be an integer'),
    ({'num_hidden_layers': None}, 'must state num_hidden_layers'),
    ({'hidden_size': '16'}, 'hidden_size must be an integer of'),
    ({'vocab_size': 2**40}, 'vocab_size must be an integer of'),
    ({'head_dim': [8]}, r'head_dim must be an integer of .* got \[8\]'),
    ({'sliding_window': 1e3}, 'sliding_window must be an integer of'),
    ({'rms_norm_eps': float('nan')}, 'rms_norm_eps must be a number of .*nan'),
    ({'rms_norm_eps': float('inf')}, 'rms_norm_eps must be a number of .*inf'),
    ({'rms_norm_eps': '1e-6'}, 'rms_norm_eps must be a number of .*1e-6'),
    ({'tie_word_embeddings': 'no'}, 'must be true or false, got no'),
    ({'hidden_act': {}}, r'hidden_act must be a text, got \{\}'),
    ({'dtype': 8}, 'dtype must be a text, got 8'),
    ({'dtype': 'int8'}, r"dtype must be one of .*got 'int8'"),
    ({'architectures': 3}, 'the architecture must be one of'),
    ({'rope_parameters': 3}, 'rope_parameters must be an object, got 3'),
    ({'rope_parameters': {'rope_theta': 0}}, 'rope_theta must be a number of'),
    (
      {'rope_scaling': {'rope_type': 'linear', 'factor': 0}},
      'factor must be a number of',
    ),
    ({'rope_scaling': {'rope_type': 'linear'}}, 'must state factor'),
    (
      {'rope_scaling': {'factor': 8.0}},
      'rope_type must be given with a factor',
    ),
    ({'is_causal': False}, 'is_causal must be true, got False'),
    ({'use_bidirectional_attention': True}, 'must be false, got True'),
    ({'quantization_config': {'quant_method': 'fp8'}}, 'must be absent, since'),
    ({'dtype': 'float64'}, 'JAX_ENABLE_X64 must be 1 for dtype float64'),
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor must be 1, got'),
    ({'layer_types': ['full_attention']}, 'layer_types must name a type for'),
    (
      {'layer_types': ['full_attention', 'sliding_attention']},
      'layer_types must be sliding_attention in all layers with a sliding_window',
    ),
    ({'model_type': 'llama'}, 'of a MistralForCausalLM must be mistral, got'),
    (
      {
        'rope_scaling': {
          'rope_type': 'yarn',
          'factor': 4.0,
          'beta_fast': 1,
          'beta_slow': 32,
          'original_max_position_embeddings': 16,
        }
      },
      'slow must be below fast, got 32 and 1',
    ),
    (
      {'layer_types': ['full_attention', 'linear_attention']},
      "layer_types must be some of .*got 'linear_attention'",
    ),
  ],
)
def test_names_impossible_config_values(fields, message, tmp_path):
  directory = copy_of('mistral', tmp_path)
  edit_config(directory, **fields)
  with pytest.raises(ValueError, match=rf'config\.json: .*{message}'):
    load_policy(directory)


def test_an_absent_epsilon_is_that_of_the_family(tmp_path):
  for name, epsilon in (('mixtral', 1e-5), ('mistral', 1e-6)):
    directory = copy_of(name, tmp_path)
    edit_config(directory, rms_norm_eps=None)
    assert load_policy(directory).config.norm_eps == epsilon


def test_absent_fields_have_the_values_of_their_family(tmp_path):
  """The values are the defaults in transformers; null disables a window."""

  def config_of(name, **fields):
    directory = copy_of(name, tmp_path / str(len(list(tmp_path.iterdir()))))
    file = directory / 'config.json'
    stored = json.loads(file.read_text()) | fields
    present_fields = {k: v for k, v in stored.items() if v != 'absent'}
    file.write_text(json.dumps(present_fields))
    return load_policy(directory).config

  absent = 'absent'
  mistral = config_of('mistral', sliding_window=absent, layer_types=absent)
  assert set(mistral.windows) == {4096}
  assert config_of('mistral', sliding_window=None).windows == ()
  qwen2 = config_of(
    'qwen2',
    use_sliding_window=True,
    sliding_window=absent,
    layer_types=absent,
    max_window_layers=0,
  )
  assert set(qwen2.windows) == {4096}
  # All layers have the window, independent of max_window_layers.
  qwen3_moe = config_of('qwen3_moe', use_sliding_window=True, sliding_window=4)
  assert set(qwen3_moe.windows) == {4}
  caps = ('attn_logit_softcapping', 'final_logit_softcapping')
  gemma2 = config_of('gemma2', **dict.fromkeys(caps, absent))
  assert (gemma2.attention_soft_cap, gemma2.logit_soft_cap) == (50.0, 30.0)
  gemma3 = config_of('gemma3', sliding_window=absent)
  assert max(gemma3.windows) == 4096
  with pytest.raises(
    ValueError, match='softcapping must be absent for a Gemma3'
  ):
    config_of('gemma3', attn_logit_softcapping=50.0)
  # Gemma has hidden_activation, the others hidden_act.
  for name, field in (
    ('gemma2', 'hidden_act'),
    ('mistral', 'hidden_activation'),
  ):
    unchanged = load_policy(MODELS / name).config.activation
    other_activation = (
      'silu' if unchanged == 'gelu_tanh' else 'gelu_pytorch_tanh'
    )
    assert config_of(name, **{field: other_activation}).activation == unchanged


def test_rope_scaling_takes_precedence_over_rope_parameters(tmp_path):
  directory = copy_of('qwen2_yarn', tmp_path)
  assert isinstance(load_policy(directory).config.rope_scaling, YarnScaling)
  scaling = {'type': 'linear', 'factor': 2.0}
  edit_config(directory, rope_scaling=scaling, rope_theta=50.0)
  config = load_policy(directory).config
  # The base is the one beside it, as in transformers.
  assert config.rope_scaling == LinearScaling(factor=2.0)
  assert config.rope_theta == 50.0
  edit_config(directory, rope_scaling=None)
  config = load_policy(directory).config
  assert isinstance(config.rope_scaling, YarnScaling)
  assert config.rope_theta == 100.0


def test_rope_scaling_of_gemma_3_is_that_of_global_layers(tmp_path):
  directory = copy_of('gemma3', tmp_path)
  before = load_policy(directory).config
  edit_config(directory, rope_scaling={'rope_type': 'linear', 'factor': 2.0})
  config = load_policy(directory).config
  assert config.rope_scaling == LinearScaling(factor=2.0)
  assert config.rope_theta == before.rope_theta
  assert config.local_rope_theta == before.local_rope_theta
