# SPDX-License-Identifier: Apache-2.0
"""What the policy is given: instructions, conversations, templates."""

import pathlib

import pytest

from covrl.data import (
  AskedSource,
  ChatTemplate,
  FileSource,
  ListSource,
  Problem,
  PromptForm,
)
from covrl.pretrained import load_chat_template

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
BOX = {'math': 'Put it in a box.', 'code': 'Write Python.'}
PLAIN = Problem(prompt='1 + 1?', reference='2', source='s', kind='math')
ASKED = Problem(
  prompt='1 + 1?',
  reference='2',
  source='s',
  kind='math',
  messages=({'role': 'user', 'content': 'Please: 1 + 1?'},),
)


@pytest.fixture
def template():
  return load_chat_template(GOLDEN / 'tokenizers' / 'bytes')


def test_a_bare_question_has_an_instruction_behind(template):
  form = PromptForm(template=template, instructions=BOX)
  assert form(PLAIN).prompt == (
    '<|im_start|>user\n1 + 1?\nPut it in a box.<|im_end|>\n'
    '<|im_start|>assistant\n'
  )
  code = Problem(prompt='Add.', reference={}, source='s', kind='code')
  assert 'Add.\nWrite Python.<|im_end|>' in form(code).prompt


def test_a_conversation_is_asked_as_it_is(template):
  form = PromptForm(template=template, instructions=BOX, system='Be brief.')
  assert form(ASKED).prompt == (
    '<|im_start|>system\nBe brief.<|im_end|>\n'
    '<|im_start|>user\nPlease: 1 + 1?<|im_end|>\n<|im_start|>assistant\n'
  )


def test_a_system_message_of_the_file_goes_first(template):
  own = {'role': 'system', 'content': 'Think.'}
  problem = Problem(
    prompt='1', reference='1', source='s', messages=(own, *ASKED.messages)
  )
  form = PromptForm(template=template, system='Be brief.')
  assert form(problem).prompt.startswith('<|im_start|>system\nThink.<|im_end|>')


def test_conversations_may_be_asked_bare(template):
  form = PromptForm(template=template, instructions=BOX, bare=True)
  assert form(ASKED).prompt == form(PLAIN).prompt


def test_the_begin_token_is_written_once():
  template = ChatTemplate(
    '{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}',
    {'bos_token': '<s>'},
  )
  assert PromptForm(template=template, begin='<s>')(PLAIN).prompt == '[1 + 1?]'
  # Where the tokenizer writes none, the template's stays.
  assert PromptForm(template=template)(PLAIN).prompt == '<s>[1 + 1?]'


def test_what_is_asked_does_not_depend_on_the_day():
  template = ChatTemplate(
    "{{ strftime_now('%d %b %Y') }}: {{ messages[0].content }}"
  )
  assert PromptForm(template=template)(PLAIN).prompt == '26 Jul 2024: 1 + 1?'


def test_a_template_of_text():
  form = PromptForm(text='Question: {question}\nAnswer:', system='Be {brief}.')
  assert form(PLAIN).prompt == 'Question: Be {brief}.\n\n1 + 1?\nAnswer:'
  with pytest.raises(ValueError, match=r"\{question\} in it, got 'Answer:'"):
    PromptForm(text='Answer:')


def test_a_refusal_says_where(template):
  problem = Problem(
    prompt='1',
    reference='1',
    source='s',
    messages=({'role': 'tool', 'content': '1'},),
    place='row 3 of a.jsonl',
  )
  with pytest.raises(
    ValueError, match=r'row 3 of a\.jsonl: .* refuses this: no such role: tool'
  ):
    PromptForm(template=template)(problem)


def test_the_source_and_its_key_stay():
  source = FileSource(GOLDEN / 'data' / 'dapo_math_17k.parquet')
  asked = AskedSource(source, PromptForm(text='{question}'))
  assert (len(asked), asked.names) == (len(source), source.names)
  assert asked[0].key == source[0].key
  assert asked[0].prompt == source[0].messages[-1]['content']
  assert AskedSource(ListSource([PLAIN]), PromptForm()).fingerprint == ''
