# SPDX-License-Identifier: Apache-2.0
"""Every source reads what was written, and says what is wrong with a file."""

import json
import pathlib
import pickle
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest

from covrl.data import (
  ArrayRecordSource,
  ConcatenatedSource,
  JsonlSource,
  ListSource,
  Problem,
  TfdsSource,
)

ROOT = pathlib.Path(__file__).parents[2]
ROWS = [
  {'prompt': f'What is {n} + é?', 'answer': str(n), 'why': f'{n} steps'}
  for n in range(5)
]


def write_jsonl(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def write_array_record(path, records):
  from array_record.python.array_record_module import ArrayRecordWriter

  writer = ArrayRecordWriter(str(path), 'group_size:1')
  for record in records:
    writer.write(record)
  writer.close()
  return path


def write_tfds(folder, rows):
  """A TFDS dataset as `tfds build` leaves it, without TensorFlow."""
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.example_serializer import ExampleSerializer

  folder = folder / 'sums' / '1.0.0'
  folder.mkdir(parents=True)
  features = tfds.features.FeaturesDict(
    {
      'question': tfds.features.Text(),
      'answer': tfds.features.Scalar(np.int32),
      'choices': tfds.features.Sequence(tfds.features.Text()),
    }
  )
  features.save_config(folder)
  info: Any = features.get_serialized_info()
  serializer = ExampleSerializer(info)
  write_array_record(
    folder / 'sums-train.array_record-00000-of-00001',
    [
      serializer.serialize_example(features.encode_example(row)) for row in rows
    ],
  )
  name = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
  info = {
    'name': 'sums',
    'version': '1.0.0',
    'fileFormat': 'array_record',
    'splits': [
      {
        'name': 'train',
        'shardLengths': [str(len(rows))],
        'numBytes': '100',
        'filepathTemplate': name,
      }
    ],
  }
  (folder / 'dataset_info.json').write_text(json.dumps(info))


@pytest.fixture
def tfds_folder(tmp_path):
  write_tfds(
    tmp_path,
    [
      {'question': f'{n} + 1 é', 'answer': n + 1, 'choices': [f'a{n}', 'b']}
      for n in range(5)
    ],
  )
  return tmp_path


@pytest.fixture
def tfds_source(tfds_folder):
  def make(**settings):
    return TfdsSource(
      'sums',
      data_dir=tfds_folder,
      **{
        'split': 'train',
        'prompt_field': 'question',
        'answer_field': 'answer',
        **settings,
      },
    )

  return make


def test_jsonl(tmp_path):
  path = write_jsonl(tmp_path / 'sums.jsonl', ROWS)
  source = JsonlSource(path)
  assert len(source) == 5
  assert source[3] == Problem(
    prompt='What is 3 + é?', reference='3', source='sums.jsonl'
  )
  other = JsonlSource(
    path, name='x', prompt_field='why', solution_field='prompt'
  )
  assert (other[0].prompt, other[0].solution) == ('0 steps', 'What is 0 + é?')
  assert other.names == ('x',)


def test_jsonl_answers_may_be_anything(tmp_path):
  answer = {'numbers': [1, 2], 'target': None}
  rows = [{'prompt': 'p', 'answer': answer}]
  source = JsonlSource(write_jsonl(tmp_path / 'a.jsonl', rows))
  assert source[0].reference == answer


def test_jsonl_says_which_row_lacks_what(tmp_path):
  path = write_jsonl(tmp_path / 'a.jsonl', [*ROWS, {'prompt': 'p', 'a': 1}])
  with pytest.raises(ValueError, match=r"Row 6 of .*a\.jsonl .*'answer', got"):
    JsonlSource(path)
  path.write_text('{"prompt": "p", "answer": 1}\n\n{"prompt": "p"')
  with pytest.raises(ValueError, match=r'Row 3 of .*a\.jsonl must be a JSON'):
    JsonlSource(path)
  path.write_text('[1]\n')
  with pytest.raises(ValueError, match=r'Row 1 .* named columns, got list'):
    JsonlSource(path)


def test_jsonl_refuses_an_empty_or_missing_file(tmp_path):
  path = tmp_path / 'a.jsonl'
  with pytest.raises(ValueError, match=r'a\.jsonl, which is none'):
    JsonlSource(path)
  path.write_text('\n\n')
  with pytest.raises(ValueError, match=r'a\.jsonl, which is empty'):
    JsonlSource(path)


def test_array_record(tmp_path):
  paths = [
    write_array_record(
      tmp_path / f'{part}.array_record',
      [json.dumps(row).encode() for row in rows],
    )
    for part, rows in (('a', ROWS[:2]), ('b', ROWS[2:]))
  ]
  source = ArrayRecordSource(paths, solution_field='why')
  assert [source[n].reference for n in range(len(source))] == list('01234')
  assert source[4].solution == '4 steps'
  assert source.names == ('a.array_record',)
  assert len(ArrayRecordSource(paths[0])) == 2
  assert pickle.loads(pickle.dumps(source))[1] == source[1]


def test_array_record_says_what_is_wrong(tmp_path):
  path = tmp_path / 'a.array_record'
  with pytest.raises(ValueError, match='which is none'):
    ArrayRecordSource(path)
  with pytest.raises(ValueError, match='no path'):
    ArrayRecordSource([])
  write_array_record(path, [])
  with pytest.raises(ValueError, match='which is empty'):
    ArrayRecordSource(path)
  write_array_record(path, [b'{"prompt": "p"}'])
  with pytest.raises(ValueError, match=r"Row 0 of .*a\.array.*'answer'"):
    ArrayRecordSource(path)
  write_array_record(path, [b'{"prompt": "p", "answer": 1}', b'?'])
  source = ArrayRecordSource(path)
  with pytest.raises(ValueError, match=r"Row 1 of .* JSON object, got b'\?'"):
    source[1]


def test_tfds(tfds_source):
  source = tfds_source(solution_field='choices')
  assert len(source) == 5
  assert source[2] == Problem(
    prompt='2 + 1 é', reference=3, source='sums', solution="['a2', 'b']"
  )
  assert type(source[2].reference) is int
  assert tfds_source(answer_field='choices')[1].reference == ['a1', 'b']
  assert len(tfds_source(split='train[:2]')) == 2


def test_tfds_says_what_is_wrong(tfds_source, tmp_path):
  with pytest.raises(ValueError, match=r"Row 0 of sums \(train\) .*'answr'"):
    tfds_source(answer_field='answr')
  with pytest.raises(ValueError, match="got 'products', which is not in"):
    TfdsSource(
      'products',
      split='train',
      data_dir=tmp_path,
      prompt_field='question',
      answer_field='answer',
    )
  with pytest.raises(ValueError, match="Unknown split 'test'"):
    tfds_source(split='test')
  with pytest.raises(ValueError, match='which is empty'):
    tfds_source(split='train[:0]')


def test_tfds_is_read_without_tensorflow(tfds_folder):
  trap = tfds_folder / 'trap'
  (trap / 'tensorflow').mkdir(parents=True)
  (trap / 'tensorflow' / '__init__.py').write_text('raise SystemExit(1)')
  program = f"""
    import sys
    sys.path.insert(0, {str(trap)!r})
    from covrl.data import TfdsSource
    source = TfdsSource(
      'sums',
      split='train',
      data_dir={str(tfds_folder)!r},
      prompt_field='question',
      answer_field='answer',
    )
    assert source[4].reference == 5
    assert 'tensorflow' not in sys.modules
  """
  subprocess.run(
    [sys.executable, '-c', textwrap.dedent(program)], check=True, cwd=ROOT
  )


def test_concatenated_sources_keep_their_names():
  first, second = (
    ListSource(
      [Problem(prompt=f'{name}{n}', reference=n, source=name) for n in range(3)]
    )
    for name in 'ab'
  )
  source = ConcatenatedSource([first, second])
  prompts = [source[n].prompt for n in range(len(source))]
  assert prompts == ['a0', 'a1', 'a2', 'b0', 'b1', 'b2']
  assert source.names == ('a', 'b')
  for index in (-1, 6):
    with pytest.raises(IndexError, match='0 to 5'):
      source[index]
