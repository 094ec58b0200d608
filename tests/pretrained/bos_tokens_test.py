# SPDX-License-Identifier: Apache-2.0
"""BOS tokens of prompts: exactly one if the tokenizer or the template adds one."""

import dataclasses
import itertools
import json

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from covrl.cli import main, sample
from covrl.config import Config
from covrl.data import JsonTokenizer, prompt_ids
from covrl.pretrained import load_tokenizer
from covrl.train import text_task

WORDS = {'<unk>': 0, '<s>': 1, '</s>': 2, 'q': 3, 'a': 4}
BOS, END, QUESTION, ANSWER = 1, 2, 3, 4

# Post-processors by the special tokens that they add.
PROCESSORS = {
  'none': None,
  'none_of_bytes': processors.ByteLevel(trim_offsets=False),
  'begin': processors.TemplateProcessing(
    single='<s> $A', pair='<s> $A <s> $B', special_tokens=[('<s>', BOS)]
  ),
  'begin_and_end': processors.TemplateProcessing(
    single='<s> $A </s>', special_tokens=[('<s>', BOS), ('</s>', END)]
  ),
  'end': processors.TemplateProcessing(
    single='$A </s>', special_tokens=[('</s>', END)]
  ),
}
# Prompt templates and chat templates that write a BOS token, or none.
TEXTS = {
  'none': '',
  'bos_token': '<s>',
  'after_newline': '\n<s>',
  'between_spaces': ' \n <s> ',
}


def tokenizer_file(processor):
  """Returns a tokenizer.json with a post-processor."""
  tokenizer = tokenizers.Tokenizer(models.WordLevel(WORDS, unk_token='<unk>'))
  tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  tokenizer.add_special_tokens(['<s>', '</s>'])
  if PROCESSORS[processor] is not None:
    tokenizer.post_processor = PROCESSORS[processor]
  return tokenizer.to_str()


def write_model(folder, processor, chat='', **fields):
  """Writes the tokenizer and chat template of a model."""
  (folder / 'tokenizer.json').write_text(tokenizer_file(processor))
  (folder / 'chat_template.jinja').write_text(
    chat + '{{ messages[0].content }} a'
  )
  fields = {'eos_token': '</s>', **fields}
  (folder / 'tokenizer_config.json').write_text(json.dumps(fields))


def first_prompt(folder, template):
  """Tokens of the first prompt of a run on one question."""
  (folder / 'q.jsonl').write_text('{"question": "q", "answer": "1"}')
  config = Config(pretrained=str(folder))
  config.data = dataclasses.replace(
    config.data,
    train=str(folder / 'q.jsonl'),
    template=template,
    math_instruction='',
  )
  task = text_task(config)
  return prompt_ids(task.train[0], task.tokenizer)


@pytest.mark.parametrize('uses_chat', [False, True])
@pytest.mark.parametrize('processor', PROCESSORS)
@pytest.mark.parametrize('text', TEXTS)
def test_prompts_have_one_bos_token_if_the_tokenizer_or_template_adds_one(
  uses_chat, processor, text, tmp_path
):
  library_tokenizer = tokenizers.Tokenizer.from_str(tokenizer_file(processor))
  has_bos = library_tokenizer.encode('q').ids[0] == BOS or bool(TEXTS[text])
  bos = [BOS] if has_bos else []
  write_model(tmp_path, processor, TEXTS[text], bos_token='<s>')
  template = '' if uses_chat else TEXTS[text] + '{question} a'
  assert first_prompt(tmp_path, template) == [*bos, QUESTION, ANSWER]


@pytest.mark.parametrize(
  ('processor', 'bos_token', 'add_bos_token'),
  list(itertools.product(PROCESSORS, [None, '<s>'], [None, False, True])),
)
def test_the_post_processor_alone_adds_a_bos_token(
  processor, bos_token, add_bos_token, tmp_path
):
  fields = {} if add_bos_token is None else {'add_bos_token': add_bos_token}
  write_model(tmp_path, processor, bos_token=bos_token, **fields)
  bos_id = load_tokenizer(tmp_path).bos_id
  library_tokenizer = tokenizers.Tokenizer.from_str(tokenizer_file(processor))
  assert bos_id == (
    BOS if library_tokenizer.encode('q').ids[0] == BOS else None
  )


@pytest.mark.parametrize('processor', ['none', 'begin'])
@pytest.mark.parametrize('add_bos_token', [None, False, True])
@pytest.mark.parametrize('name', ['LlamaTokenizerFast', 'Qwen2Tokenizer'])
def test_versions_of_transformers_that_disagree_are_noted(
  name, add_bos_token, processor, tmp_path, capsys, monkeypatch
):
  fields = {} if add_bos_token is None else {'add_bos_token': add_bos_token}
  write_model(
    tmp_path, processor, bos_token='<s>', tokenizer_class=name, **fields
  )
  version_4 = {
    'LlamaTokenizerFast': add_bos_token is not False,
    'Qwen2Tokenizer': processor == 'begin',
  }
  differs = version_4[name] != (processor == 'begin')
  texts = {True: 'prompts begin with <s>', False: 'prompts begin without <s>'}
  expected = [texts[processor == 'begin']] * differs
  assert [n.partition(',')[0] for n in notes(tmp_path, '')] == expected
  # Prompts that write the token are the same in both.
  assert not notes(tmp_path, '<s>{question} a')
  # Nothing is sampled.
  monkeypatch.setattr(sample, '_sample_pretrained', printed_notes)
  (tmp_path / 'config.json').write_text('{}')
  main(['sample', str(tmp_path), 'q'])
  assert capsys.readouterr().err.count('prompts begin') == differs
  main(['sample', str(tmp_path), ' <s>q'])
  assert 'prompts begin' not in capsys.readouterr().err


def printed_notes(arguments, progress):
  """Prints the notes of `covrl sample` alone."""
  tokenizer = load_tokenizer(arguments.policy)
  config = Config(pretrained=arguments.policy)
  sample.print_prompt_notes(arguments, config, tokenizer, progress)
  return []


def notes(folder, template):
  """The notes on BOS tokens of a run on one question."""
  first_prompt(folder, template)
  config = Config(pretrained=str(folder))
  config.data.train = str(folder / 'q.jsonl')
  config.data.template = template
  config.data.math_instruction = ''
  return [n for n in text_task(config).notes if n.startswith('prompts begin')]


def test_a_given_bos_token_takes_precedence():
  file = tokenizer_file('none').encode()
  assert JsonTokenizer(file, end_tokens=[END]).bos_id is None
  assert JsonTokenizer(file, end_tokens=[END], bos_token='<s>').bos_id == BOS


def test_special_tokens_of_other_files_are_special(tmp_path):
  file = json.loads(tokenizer_file('begin'))
  write_model(tmp_path, 'begin', bos_token='<s>')
  (tmp_path / 'tokenizer.json').write_text(
    json.dumps(file | {'added_tokens': []})
  )
  tokenizer = load_tokenizer(tmp_path)
  # Without a space around them they are found only as special tokens.
  assert tokenizer.encode('<s>q a</s>') == [BOS, QUESTION, ANSWER, END]
  assert tokenizer.decode([BOS, QUESTION, END]) == 'q'
  assert first_prompt(tmp_path, '<s>{question} a') == [BOS, QUESTION, ANSWER]


def test_refuses_several_bos_tokens():
  tokenizer = tokenizers.Tokenizer.from_str(tokenizer_file('none'))
  tokenizer.post_processor = processors.TemplateProcessing(
    single='<s> </s> $A', special_tokens=[('<s>', BOS), ('</s>', END)]
  )
  with pytest.raises(ValueError, match=r'at most one token .*puts \[1, 2\]'):
    JsonTokenizer(tokenizer.to_str().encode(), end_tokens=[END])
