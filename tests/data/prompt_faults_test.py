# SPDX-License-Identifier: Apache-2.0
"""Tests of counts of prompts that lack text, and of texts with special tokens."""

import pathlib

import pytest

from covrl.data import (
  ChatTemplate,
  JsonTokenizer,
  ListSource,
  Problem,
  ProblemFilter,
  PromptFaults,
  PromptFormat,
  filter_sources,
  train_sentencepiece,
)

FILE = pathlib.Path(__file__).parents[1] / (
  'golden/tokenizers/bytes/tokenizer.json'
)
LOOP = '{% for m in messages %}'
ALL = LOOP + '[{{ m.role }}]{{ m.content | trim }}\n{% endfor %}'
SYSTEM = {'role': 'system', 'content': 'Be brief.\n'}
FIRST = {'role': 'user', 'content': ' Let x = 3.'}
ANSWER = {'role': 'assistant', 'content': '<think>\nHm.\n</think>\n\nOkay.'}
LAST = {'role': 'user', 'content': 'What is 4 times x, written as a number?'}


@pytest.fixture(scope='module')
def tokenizer():
  return JsonTokenizer.load(FILE, end_tokens=['<|im_end|>'])


class Unlisted:
  """A tokenizer without a list of special tokens."""

  vocab_size, bos_id, end_ids, pad_id, fingerprint = 9, None, (0,), 0, ''

  def encode(self, text: str) -> list[int]:
    return [1] * len(text)

  def decode(self, ids) -> str:
    return 'a' * len(ids)

  def to_bytes(self) -> bytes:
    return b''


def problem(*messages, question=LAST['content'], row=1):
  """A problem of a row of a file."""
  return Problem(
    prompt=question,
    reference='12',
    source='s',
    messages=messages,
    location=f'row {row} of a.jsonl',
  )


def warnings(problems, tokenizer, **settings):
  """Warnings on the formatted problems."""
  prompt_format = PromptFormat(**settings)
  faults = PromptFaults(prompt_format, tokenizer)
  for each in problems:
    faults.add(each, prompt_format(each).prompt)
  return faults.warnings()


@pytest.mark.parametrize(
  ('template', 'roles'),
  [
    (LOOP + "{{ m.content if m.role != 'system' }}{% endfor %}", ['system']),
    (
      LOOP + "{{ m.content if m.role != 'assistant' }};{% endfor %}",
      ['assistant'],
    ),
    ('{{ messages[-1].content }}', ['assistant', 'system', 'user']),
    (LOOP + '{{ m.content[:30] }}{% endfor %}', ['user']),
  ],
)
def test_messages_that_a_template_leaves_out_are_counted(
  tokenizer, template, roles
):
  problems = [
    problem(question='5?'),
    *(problem(SYSTEM, FIRST, ANSWER, LAST, row=row) for row in (2, 3)),
  ]
  (warning,) = warnings(
    problems, tokenizer, template=ChatTemplate(template), system='Think.'
  )
  assert 'leaves out text of messages in ' in warning
  assert ' of 3 prompts: ' in warning
  for role in roles:
    assert role in warning
  # Roles that are left out in the same rows have one location.
  assert warning.count('(first: row ') <= len(roles)


def test_numbers_and_first_rows_are_those_of_each_role(tokenizer):
  template = ChatTemplate('{{ messages[-1].content }}')
  problems = [
    problem(LAST),
    problem(FIRST, LAST, row=2),
    problem(SYSTEM, LAST, row=3),
    problem(SYSTEM, FIRST, LAST, row=4),
    problem(SYSTEM, LAST, row=5),
  ]
  assert warnings(problems, tokenizer, template=template) == [
    'the chat template leaves out text of messages in 4 of 5 prompts: system in 3'
    ' (first: row 3 of a.jsonl), user in 2 (first: row 2 of a.jsonl)'
  ]
  # Of a bare question no other message is compared.
  settings = {'template': template, 'question_only': True}
  (warning,) = warnings(problems, tokenizer, **settings)
  assert 'template' not in warning


@pytest.mark.parametrize(
  'template',
  [
    ALL,
    # Of earlier answers only what follows the reasoning.
    LOOP + "{{ m.content.split('</think>')[-1] | trim }};{% endfor %}",
    # Lines are stripped, and a switch of the reasoning is read and removed.
    LOOP + "{% for line in m.content.replace('/no_think', '').split('\n') %}"
    '{{ line | trim }}\n{% endfor %}{% endfor %}',
  ],
)
def test_templates_that_write_all_messages_are_not_reported(
  tokenizer, template
):
  switched = {'role': 'user', 'content': 'Why?\r\n  How? /no_think'}
  problems = [problem(SYSTEM, FIRST, ANSWER, switched), problem()]
  template = ChatTemplate(template)
  assert warnings(problems, tokenizer, template=template) == []


def test_answers_whose_text_a_template_may_select_are_not_compared(tokenizer):
  template = ChatTemplate(
    LOOP + "{{ m.content.split('<answer>')[-1].split('</answer>')[0] }}"
    '{% endfor %}'
  )
  answer = {'role': 'assistant', 'content': 'Hm. <answer>3</answer>'}
  problems = [problem(FIRST, answer, LAST)]
  assert warnings(problems, tokenizer, template=template) == []


def test_turns_that_bare_questions_lack_are_counted(tokenizer):
  developer = {'role': 'developer', 'content': 'Be brief.'}
  result = {'role': 'tool', 'content': '3'}
  problems = [
    problem(),
    problem(SYSTEM, developer, LAST, row=2),
    problem(SYSTEM, FIRST, ANSWER, LAST, row=3),
    problem(FIRST, LAST, row=4),
    problem(LAST, ANSWER, result, row=5),
    # Two turns of equal text.
    problem({**LAST}, LAST, row=6),
  ]
  for template in (ChatTemplate(ALL), None):
    settings = {'template': template, 'question_only': True}
    assert warnings(problems, tokenizer, **settings) == [
      'the bare questions of 4 of 6 problems are without the other turns of their'
      ' conversations: user in 3 (first: row 3 of a.jsonl), assistant in 2 (first:'
      ' row 3 of a.jsonl), tool in 1 (first: row 5 of a.jsonl)'
    ]
    assert warnings(problems[:2], tokenizer, **settings) == []
    settings = {'template': template, 'question_only': False}
    assert warnings(problems, tokenizer, **settings) == []


def test_special_tokens_in_texts_are_counted(tokenizer):
  marked = 'What is 1 + 3?<|im_end|>\n<|im_start|>assistant\n5<|im_end|>'
  problems = [
    problem(),
    problem(question='1 <|im_ end|> 2', row=2),
    problem(question=marked, row=3),
    problem({'role': 'system', 'content': '<|im_end|>'}, LAST, row=4),
  ]
  sentence = (
    '{} of 4 problems have special tokens in their text, which are encoded as'
    ' such and may end a turn within the prompt: '
  )
  template = ChatTemplate(ALL)
  assert warnings(problems, tokenizer, template=template) == [
    f'{sentence.format(2)}<|im_end|> in 2 (first: row 3 of a.jsonl),'
    ' <|im_start|> in 1 (first: row 3 of a.jsonl)'
  ]
  bare = warnings(problems, tokenizer, template=template, question_only=True)
  assert bare[0].startswith(sentence.format(1))
  # The texts of a configured template are not those of a row.
  system = '<|im_end|>'
  assert not warnings(problems[:1], tokenizer, template=template, system=system)
  # Rows may be formatted prompts, which no template is put around.
  assert len(warnings(problems, tokenizer)) == 1
  assert warnings(problems[2:3], tokenizer) == []


def test_special_tokens_of_sentencepiece_are_counted():
  tokenizer = train_sentencepiece(['What is 1 + 3 ?'])
  problems = [problem(question='What </s> <s> </s> is ?'), problem()]
  (warning,) = warnings(problems, tokenizer, template=ChatTemplate(ALL))
  assert warning.endswith(': </s>, <s> in 1 (first: row 1 of a.jsonl)')


def test_a_warning_names_a_few_tokens(tokenizer):
  names = ['<|im_end|>', '<|im_start|>', '<|endoftext|>']
  assert set(names) <= set(tokenizer.special_tokens)
  many = JsonTokenizer(
    FILE.read_bytes(), end_tokens=[names[0]], special_tokens=['a', 'b']
  )
  assert {'a', 'b'} <= set(many.special_tokens)
  problems = [problem(question=f'{"".join(names)} a b')]
  (warning,) = warnings(problems, many, template=ChatTemplate(ALL))
  assert warning.endswith(
    ': <|endoftext|>, <|im_end|>, <|im_start|> in 1 (first: row 1 of a.jsonl), 2'
    ' others'
  )


def test_nothing_is_reported_of_tokenizers_without_a_list_of_special_tokens():
  problems = [problem(question='1<|im_end|>'), problem()]
  assert warnings(problems, Unlisted(), template=ChatTemplate(ALL)) == []


def test_filters_count_the_problems_that_they_keep_and_format_them_once(
  tokenizer,
):
  prompt_format = PromptFormat(template=ChatTemplate(ALL))
  formatted = []

  def format_prompt(each):
    formatted.append(each.location)
    return prompt_format(each)

  problems = [
    problem(question='<|im_end|>', row=1),
    problem(question=f'<|im_end|>{"long" * 40}', row=2),
    problem(question='short', row=3),
  ]
  (filtered,) = filter_sources(
    [ListSource(problems)],
    ProblemFilter(
      deduplicate=False,
      format_prompt=format_prompt,
      prompt_length=lambda each: len(each.prompt),
      max_prompt_length=60,
      prompt_faults=lambda: PromptFaults(prompt_format, tokenizer),
    ),
  )
  assert len(filtered.source) == 2
  assert formatted == [each.location for each in problems]
  (warning,) = filtered.warnings()
  assert warning.startswith('1 of 2 problems have special tokens')


@pytest.mark.parametrize(
  ('tokens', 'found'),
  [
    (['<a>', '<a>b', '<ab>', '<'], ['<a>b', '<', '<a>']),
    ([f'<unused{n}>' for n in range(2000)] + ['<a>'], ['<a>']),
    ([''], []),
  ],
)
def test_the_longest_special_token_counts(tokens, found):
  class Listed(Unlisted):
    special_tokens = tuple(tokens)

  faults = PromptFaults(PromptFormat(), Listed())
  faults.add(problem(question='<a>b <b> <a> <unused>'), '')
  faults.add(problem(), '')
  names = ', '.join(sorted(found))
  counted = ''.join(faults.warnings())
  assert counted.endswith(
    f': {names} in 1 (first: row 1 of a.jsonl)' * any(found)
  )
