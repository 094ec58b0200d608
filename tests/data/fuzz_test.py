# SPDX-License-Identifier: Apache-2.0
"""Random files give a result or one error message, within memory and time.

Contents are random bytes, random text in the file's own notation, and good
files with random changes; all are determined by a seed. `make test` tries a
few, `make test-all` a thousand of each kind.
"""

import json
import pathlib
import random
import resource
import shutil
import time

import pyarrow
import pyarrow.parquet
import pytest

from covrl.data import ChatTemplate, FileSource
from covrl.pretrained import load_chat_template, load_tokenizer

TOKENIZERS = pathlib.Path(__file__).parents[1] / 'golden' / 'tokenizers'
CHAT = [{'role': 'user', 'content': 'What is 12 + 30?'}]
# Damaged inputs of a test, and of its slow form.
FEW, MANY = 40, 1000
MAX_SECONDS = 30
MAX_MEMORY = 1 << 30

_JSON_WORDS = [
  '{',
  '}',
  '[',
  ']',
  ',',
  ':',
  '"',
  '\\',
  '\\u',
  'd800',
  'null',
  'true',
  'NaN',
  '-Infinity',
  '1e999',
  '-0',
  '"question"',
  '"answer"',
  '"prompt"',
  '"solution"',
  '"role"',
  '"content"',
  '"user"',
  '"boxed{"',
  '####',
  'é',
  '🙂',
  '\x00',
  '1',
  '2',
]
_TEMPLATE_WORDS = [
  '{{',
  '}}',
  '{%',
  '%}',
  '{%-',
  '-%}',
  '{#',
  '#}',
  'for',
  'm',
  'in',
  'messages',
  'endfor',
  'if',
  'else',
  'endif',
  'set',
  '=',
  'macro',
  'endmacro',
  'call',
  'm',
  '.',
  'content',
  '[',
  ']',
  '(',
  ')',
  '|',
  'tojson',
  'join',
  '*',
  '**',
  '99999999',
  '"x"',
  '~',
  '+',
  'range',
  'namespace',
  'loop',
  'recursive',
  'raise_exception',
  'generation',
  'endgeneration',
  'break',
  'strftime_now',
  '\n',
  'not',
  'is',
  'defined',
  'none',
  'dict',
  'lipsum',
  'filter',
]


def random_bytes(generator):
  return generator.randbytes(generator.choice((0, 1, 8, 200)))


def random_words(generator, words):
  count = generator.choice((1, 5, 40, 400))
  joint = generator.choice(('', ' '))
  return joint.join(generator.choice(words) for _ in range(count)).encode()


def mutate(generator, valid_content):
  """A good content with some bytes replaced, inserted or removed."""
  content = bytearray(valid_content)
  for _ in range(generator.choice((1, 1, 3, 20))):
    position = generator.randrange(len(content) + 1)
    size = generator.choice((1, 1, 4, 40))
    match generator.randrange(4):
      case 0:
        content[position : position + size] = generator.randbytes(size)
      case 1:
        content[position:position] = content[:size]
      case 2:
        del content[position : position + size]
      case _:
        content[position : position + 1] = b'{["}]0'[generator.randrange(6) :][
          :1
        ]
  return bytes(content)


def check_random_content(generator, valid_content, words, read):
  """Reads one random content; an error must be one short sentence."""
  match generator.randrange(3):
    case 0:
      content = random_bytes(generator)
    case 1:
      content = random_words(generator, words)
    case _:
      content = mutate(generator, valid_content)
  start = time.monotonic()
  message = 'none'
  try:
    read(content)
  except ValueError as error:
    message = str(error)
  assert '\n' not in message, content
  assert 0 < len(message) < 1000, content
  assert time.monotonic() - start < MAX_SECONDS, content


def peak_memory():
  """Most memory so far, in bytes: of this process and of an ended child."""
  return [
    resource.getrusage(who).ru_maxrss * 1024
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  ]


def fuzz(count, valid_content, words, read):
  """Reads random contents of seeds 0 to `count` − 1 and checks the memory used."""
  peaks_before = peak_memory()
  for seed in range(count):
    check_random_content(random.Random(seed), valid_content, words, read)
  for peak, peak_before in zip(peak_memory(), peaks_before, strict=True):
    assert peak - peak_before < MAX_MEMORY


COUNTS = pytest.mark.parametrize(
  'count', [FEW, pytest.param(MANY, marks=pytest.mark.slow)]
)


@COUNTS
def test_random_chat_templates_give_text_or_one_error(count):
  valid_content = (TOKENIZERS / 'bytes' / 'chat_template.jinja').read_bytes()

  def read(content):
    template = ChatTemplate(content.decode(errors='replace'), file='a.jinja')
    assert isinstance(template.render(CHAT), str)

  fuzz(count, valid_content, _TEMPLATE_WORDS, read)


@COUNTS
@pytest.mark.parametrize('schema', [None, 'verl', 'OlympiadBench', 'KodCode'])
def test_random_rows_of_json_give_problems_or_one_error(
  count, schema, tmp_path
):
  file = tmp_path / 'a.jsonl'
  rows = [
    {'question': 'q', 'answer': 'so\n#### 1', 'data_source': 's'},
    {
      'prompt': [{'role': 'user', 'content': 'q'}],
      'ability': 'code',
      'reward_model': {'ground_truth': '{"inputs": ["1"], "outputs": ["2"]}'},
    },
    {'question': 'q', 'final_answer': ['1', '2'], 'context': 'c'},
    {'question': 'q', 'test': 'assert 1', 'test_info': [{'x': 'y'}]},
  ]
  valid_content = b'\n'.join(json.dumps(row).encode() for row in rows)

  def read(content):
    file.write_bytes(content)
    for problem in FileSource(file, schema=schema):
      json.dumps(problem.reference).encode()
      problem.prompt.encode()

  fuzz(count // 2, valid_content, _JSON_WORDS, read)


@COUNTS
@pytest.mark.parametrize(
  ('kind', 'name'),
  [
    ('bytes', 'tokenizer.json'),
    ('bytes', 'tokenizer_config.json'),
    ('bytes', 'generation_config.json'),
    ('bytes', 'chat_template.jinja'),
    ('pieces', 'tokenizer.model'),
    ('pieces', 'config.json'),
  ],
)
def test_random_files_of_tokenizers_give_a_tokenizer_or_one_error(
  count, kind, name, tmp_path
):
  copy = pathlib.Path(shutil.copytree(TOKENIZERS / kind, tmp_path / kind))
  valid_content = (copy / name).read_bytes()

  def read(content):
    (copy / name).write_bytes(content)
    tokenizer = load_tokenizer(copy)
    ids = tokenizer.encode('The sum is 42. é')
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    tokenizer.decode(ids)
    load_chat_template(copy).render(CHAT)

  fuzz(count // 4 if count == FEW else count, valid_content, _JSON_WORDS, read)


@COUNTS
def test_random_parquet_files_give_problems_or_one_error(count, tmp_path):
  file = tmp_path / 'a.parquet'
  rows = [
    {'question': f'q{n} é', 'answer': str(n), 'scores': [n / 2, None]}
    for n in range(20)
  ]
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
  valid_content = file.read_bytes()

  def read(content):
    file.write_bytes(content)
    for problem in FileSource(file):
      problem.prompt.encode()

  fuzz(count, valid_content, ['PAR1', '\x00', '\x15', '\xff'], read)
