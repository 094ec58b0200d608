# SPDX-License-Identifier: Apache-2.0
"""Chat templates that leave out what a run is to write."""

import pathlib
import shutil

import pytest

from covrl.config import Config, ConfigError
from covrl.tasks.text import text_task

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'


@pytest.mark.parametrize(
  ('template', 'data', 'sentence'),
  [
    (
      '{{ messages[-1].content }}',
      {'template_variables': '{"enable_thinkin": false}'},
      "got 'enable_thinkin', which .* does not read",
    ),
    (
      '{{ messages[-1].content }}',
      {'system': 'Be brief.'},
      r'data\.system must be written by the chat template, and .* leaves it out',
    ),
    (
      '{{ messages[0].content }}',
      {'system': 'Be brief.'},
      'a question must be written by the chat template, and .* leaves it out',
    ),
    ('Hello', {}, 'a question must be written by the chat template'),
  ],
)
def test_what_a_chat_template_leaves_out_is_refused(
  tmp_path, template, data, sentence
):
  model = pathlib.Path(
    shutil.copytree(GOLDEN / 'tokenizers' / 'bytes', tmp_path / 'model')
  )
  (model / 'chat_template.jinja').write_text(template)
  made = Config(pretrained=str(model))
  made.data.train = str(GOLDEN / 'data' / 'plain.jsonl')
  for name, value in data.items():
    setattr(made.data, name, value)
  with pytest.raises(ConfigError, match=sentence):
    text_task(made)
