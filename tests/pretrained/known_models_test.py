# SPDX-License-Identifier: Apache-2.0
"""Shapes of well-known models, which need no download."""

import pytest

from covrl import config
from covrl.pretrained import load_policy
from covrl.pretrained.families.known_models import (
  KNOWN_MODELS,
  known_model_directory,
)


@pytest.mark.parametrize(
  ('name', 'parameters'),
  [
    ('Qwen/Qwen2.5-0.5B', 494_032_768),
    ('Qwen/Qwen2.5-1.5B', 1_543_714_304),
    ('Qwen/Qwen2.5-7B', 7_615_616_512),
    ('Qwen/Qwen2.5-32B', 32_763_876_352),
    ('Qwen/Qwen2.5-72B', 72_706_203_648),
    ('meta-llama/Llama-3.1-8B-Instruct', 8_030_261_248),
    ('mistralai/Mistral-7B-Instruct-v0.3', 7_248_023_552),
    ('deepseek-ai/deepseek-math-7b-instruct', 6_910_365_696),
  ],
)
def test_known_models_have_the_published_parameter_counts(name, parameters):
  with known_model_directory(name) as directory:
    assert load_policy(directory or '').num_params == parameters


def test_every_pretrained_recipe_has_a_known_shape():
  named = {
    config.load(spec).config.pretrained
    for spec, _ in config.recipes()
    if spec.startswith('reasoning:')
  }
  assert len(named) == 7
  assert named <= set(KNOWN_MODELS)
