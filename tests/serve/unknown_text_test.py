# SPDX-License-Identifier: Apache-2.0
"""Requests with text for which the tokenizer has no token."""

import shutil

from pretrained.text_models import remove_character
from serve.app_test import GREEDY, serve
from serve.asgi import complete
from serve.conftest import GOLDEN

from covrl.pretrained import load_tokenizer


def test_text_without_a_token_is_refused_and_the_server_goes_on(
  engine, tmp_path, monkeypatch
):
  directory = shutil.copytree(GOLDEN / 'bytes', tmp_path / 'bytes')
  remove_character(directory / 'tokenizer.json', '+')
  monkeypatch.setattr('serve.app_test.TOKENIZER', load_tokenizer(directory))

  async def scenario(server):
    answer = await complete(server.app, **{**GREEDY, 'prompt': '3 + 4'})
    assert (answer.status, answer.error) == (
      400,
      "a text must be of the tokenizer's vocabulary, got '3 + 4' without a token"
      " for '+'",
    )
    answer = await complete(server.app, **{**GREEDY, 'stop': '+'})
    assert answer.status == 400
    assert 'stop strings must be text that tokens decode to' in answer.error
    assert (await complete(server.app, **GREEDY)).status == 200

  serve(engine, scenario)
