# SPDX-License-Identifier: Apache-2.0
"""Chat templates that leave out the question or settings of the prompt."""

import pathlib
import shutil

import pytest

from covrl.config import Config, ConfigError
from covrl.tasks.text import text_task

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'


@pytest.mark.parametrize(
  ('template', 'data', 'error'),
  [
    (
      '{{ messages[-1].content }}',
      {'template_variables': '{"enable_thinkin": false}'},
      "got 'enable_thinkin', which .* does not read",
    ),
    (
      '{{ messages[-1].content }}',
      {'system': 'Be brief.'},
      r'data\.system must be written by the chat template, got .* leaves it out',
    ),
    (
      '{{ messages[0].content }}',
      {'system': 'Be brief.'},
      'a question must be written by the chat template, got .* leaves it out',
    ),
    ('Hello', {}, 'a question must be written by the chat template'),
  ],
)
def test_refuses_chat_templates_that_leave_out_text(
  tmp_path, template, data, error
):
  model = pathlib.Path(
    shutil.copytree(GOLDEN / 'tokenizers' / 'bytes', tmp_path / 'model')
  )
  (model / 'chat_template.jinja').write_text(template)
  config = Config(pretrained=str(model))
  config.data.train = str(GOLDEN / 'data' / 'plain.jsonl')
  for name, value in data.items():
    setattr(config.data, name, value)
  with pytest.raises(ConfigError, match=error):
    text_task(config)
