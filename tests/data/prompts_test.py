# SPDX-License-Identifier: Apache-2.0
"""Tests of prompt formats: instructions, conversations, templates."""

import pathlib

import pytest

from covrl.data import (
  ChatTemplate,
  FileSource,
  FormattedSource,
  ListSource,
  Problem,
  PromptFormat,
)
from covrl.pretrained import load_chat_template

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
INSTRUCTIONS = {'math': 'Put it in a box.', 'code': 'Write Python.'}
QUESTION = Problem(prompt='1 + 1?', reference='2', source='s', kind='math')
CONVERSATION = Problem(
  prompt='1 + 1?',
  reference='2',
  source='s',
  kind='math',
  messages=({'role': 'user', 'content': 'Please: 1 + 1?'},),
)


@pytest.fixture
def template():
  return load_chat_template(GOLDEN / 'tokenizers' / 'bytes')


def test_questions_are_followed_by_an_instruction(template):
  prompt_format = PromptFormat(template=template, instructions=INSTRUCTIONS)
  assert prompt_format(QUESTION).prompt == (
    '<|im_start|>user\n1 + 1?\nPut it in a box.<|im_end|>\n'
    '<|im_start|>assistant\n'
  )
  code = Problem(prompt='Add.', reference={}, source='s', kind='code')
  assert 'Add.\nWrite Python.<|im_end|>' in prompt_format(code).prompt


def test_conversations_have_no_instruction(template):
  prompt_format = PromptFormat(
    template=template, instructions=INSTRUCTIONS, system='Be brief.'
  )
  assert prompt_format(CONVERSATION).prompt == (
    '<|im_start|>system\nBe brief.<|im_end|>\n'
    '<|im_start|>user\nPlease: 1 + 1?<|im_end|>\n<|im_start|>assistant\n'
  )


def test_system_messages_of_the_file_take_precedence(template):
  system_message = {'role': 'system', 'content': 'Think.'}
  problem = Problem(
    prompt='1',
    reference='1',
    source='s',
    messages=(system_message, *CONVERSATION.messages),
  )
  prompt_format = PromptFormat(template=template, system='Be brief.')
  assert prompt_format(problem).prompt.startswith(
    '<|im_start|>system\nThink.<|im_end|>'
  )


def test_conversations_can_be_replaced_by_their_question(template):
  prompt_format = PromptFormat(
    template=template, instructions=INSTRUCTIONS, question_only=True
  )
  assert prompt_format(CONVERSATION).prompt == prompt_format(QUESTION).prompt


def test_templates_receive_variables_and_special_tokens():
  template = ChatTemplate(
    '{{ bos_token }}{{ messages[0].content }}{% if enable_thinking is false %}'
    '<think></think>{% endif %}',
    {'bos_token': '<s>'},
  )
  assert PromptFormat(template=template)(QUESTION).prompt == '<s>1 + 1?'
  prompt_format = PromptFormat(
    template=template, variables={'enable_thinking': False}
  )
  assert prompt_format(QUESTION).prompt == '<s>1 + 1?<think></think>'


def test_prompts_do_not_depend_on_the_date():
  template = ChatTemplate(
    "{{ strftime_now('%d %b %Y') }}: {{ messages[0].content }}"
  )
  assert (
    PromptFormat(template=template)(QUESTION).prompt == '26 Jul 2024: 1 + 1?'
  )


def test_text_formats_insert_system_message_and_question():
  prompt_format = PromptFormat(
    plain_template='Question: {question}\nAnswer:', system='Be {brief}.'
  )
  assert (
    prompt_format(QUESTION).prompt == 'Question: Be {brief}.\n\n1 + 1?\nAnswer:'
  )
  with pytest.raises(ValueError, match=r"\{question\} in it, got 'Answer:'"):
    PromptFormat(plain_template='Answer:')


def test_template_errors_name_the_row(template):
  problem = Problem(
    prompt='1',
    reference='1',
    source='s',
    messages=({'role': 'tool', 'content': '1'},),
    location='row 3 of a.jsonl',
  )
  with pytest.raises(
    ValueError,
    match=r'row 3 of a\.jsonl: .* got its refusal: no such role: tool',
  ):
    PromptFormat(template=template)(problem)


def test_formatted_sources_keep_names_and_keys():
  source = FileSource(GOLDEN / 'data' / 'dapo_math_17k.parquet')
  formatted = FormattedSource(source, PromptFormat(plain_template='{question}'))
  assert (len(formatted), formatted.names) == (len(source), source.names)
  assert formatted[0].key == source[0].key
  assert formatted[0].prompt == source[0].messages[-1]['content']
  plain, other = (
    FormattedSource(ListSource([QUESTION]), PromptFormat(system=system))
    for system in ('', 'Think.')
  )
  assert plain.fingerprint
  assert plain.fingerprint != other.fingerprint
