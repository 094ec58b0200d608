# SPDX-License-Identifier: Apache-2.0
"""Tests of file readers and problem sources."""

import json
import os
import pathlib
import pickle
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from covrl.data import (
  FileSource,
  JsonlRecords,
  Problem,
  TfdsRecords,
  custom_schema,
  open_records,
)

ROOT = pathlib.Path(__file__).parents[2]
ROWS = [
  {'prompt': f'What is {n} + é?', 'answer': str(n), 'why': f'{n} steps'}
  for n in range(5)
]


def write_jsonl(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def write_parquet(path, rows):
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
  return path


def write_array_record(path, records):
  from array_record.python.array_record_module import ArrayRecordWriter

  writer = ArrayRecordWriter(str(path), 'group_size:1')
  for record in records:
    writer.write(record)
  writer.close()
  return path


def write_tfds(folder, rows):
  """Writes a TFDS dataset like `tfds build`, without TensorFlow."""
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.example_serializer import ExampleSerializer

  folder = folder / 'sums' / '1.0.0'
  folder.mkdir(parents=True)
  features = tfds.features.FeaturesDict(
    {
      'question': tfds.features.Text(),
      'answer': tfds.features.Scalar(np.int32),
      'rate': tfds.features.Scalar(np.float32),
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
      {
        'question': f'{n} + 1 é',
        'answer': n + 1,
        'rate': 0.1,
        'choices': [f'a{n}', 'b'],
      }
      for n in range(5)
    ],
  )
  return tmp_path


def write(kind, folder, rows):
  """Writes a file of a kind; returns it and the number of its first row."""
  path = folder / f'sums.{kind}'
  match kind:
    case 'jsonl':
      return write_jsonl(path, rows), 1
    case 'parquet':
      return write_parquet(path, rows), 0
    case _:
      records = [json.dumps(row).encode() for row in rows]
      return write_array_record(path, records), 0


KINDS = pytest.mark.parametrize('kind', ['jsonl', 'parquet', 'array_record'])


@KINDS
def test_all_kinds_of_files_have_the_same_problems(kind, tmp_path):
  path, first = write(kind, tmp_path, ROWS)
  source = FileSource(path)
  assert source.schema.name == 'plain'
  assert source.names == (path.name,)
  assert [source[n].reference for n in range(len(source))] == list('01234')
  assert (source[3].prompt, source[3].source) == ('What is 3 + é?', path.name)
  assert source[3].location == f'row {3 + first} of {path}'
  assert list(open_records(path)) == ROWS
  assert FileSource(path, name='sums')[0].source == 'sums'
  assert pickle.loads(pickle.dumps(open_records(path)))[1] == ROWS[1]


def test_narrow_numbers_of_parquet_files_have_their_shortest_decimals(tmp_path):
  path = tmp_path / 'narrow.parquet'
  table = pyarrow.table(
    {
      'problem': ['one tenth?', 'nothing?'],
      'answer': np.array([0.1, 7], np.float32),
      'half': np.array([0.1, 7], np.float16),
      'parts': pyarrow.array(
        [[{'x': 0.1}], None],
        pyarrow.list_(pyarrow.struct([('x', pyarrow.float32())])),
      ),
      'map': pyarrow.array(
        [[('a', 0.1)], None], pyarrow.map_(pyarrow.string(), pyarrow.float32())
      ),
      'stored_once': pyarrow.array(
        np.array([0.1, 0.1], np.float32)
      ).dictionary_encode(),
    }
  )
  pyarrow.parquet.write_table(table, path)
  source, records = FileSource(path), open_records(path)
  assert [source[0].reference, source[1].reference] == ['0.1', '7']
  assert records[0]['half'] == 0.1
  assert records[0]['parts'] == [{'x': 0.1}]
  assert [record['map'] for record in records] == [[('a', 0.1)], None]
  assert records[1]['stored_once'] == 0.1
  assert list(records) == [records[0], records[1]]


@KINDS
def test_refuses_a_missing_column(kind, tmp_path):
  path, first = write(kind, tmp_path, [{**ROWS[0], 'answer': '1'}])
  with pytest.raises(ValueError) as caught:
    FileSource(path, schema=custom_schema('prompt', 'answr'))
  assert str(caught.value) == (
    f"row {first} of {path} must have the column 'answr', got 'prompt',"
    " 'answer', 'why'"
  )


@pytest.mark.parametrize('kind', ['jsonl', 'array_record'])
def test_refuses_columns_of_mixed_types(kind, tmp_path):
  path, first = write(kind, tmp_path, [*ROWS, {'prompt': 'p', 'answer': 5}])
  with pytest.raises(ValueError) as caught:
    FileSource(path)
  assert str(caught.value) == (
    f"column 'answer' must hold the same type throughout, got text in row"
    f' {first} of {path} and a number in row {first + 5} of {path}'
  )


def test_refuses_a_source_of_mixed_kinds(tmp_path):
  def row(ability, truth):
    return {
      'data_source': 'mixed',
      'prompt': [{'role': 'user', 'content': 'q'}],
      'ability': ability,
      'reward_model': {'ground_truth': truth},
    }

  tests = json.dumps({'inputs': ['1'], 'outputs': ['2']})
  path = write_jsonl(
    tmp_path / 'a.jsonl', [row('math', '4'), row('code', tests)]
  )
  with pytest.raises(ValueError) as caught:
    FileSource(path)
  assert str(caught.value) == (
    "the source 'mixed' must be of one kind of problems (a column 'data_source'"
    f' divides a file into sources), got math in row 1 of {path} and code in'
    f' row 2 of {path}'
  )


def test_custom_schemas_read_the_given_columns(tmp_path):
  answer = {'numbers': [1, 2], 'target': None}
  rows = [{'asked': 'p', 'wanted': answer, 'why': 'w'}]
  path = write_jsonl(tmp_path / 'a.jsonl', rows)
  schema = custom_schema('asked', 'wanted', 'why')
  problem = FileSource(path, schema=schema)[0]
  assert (problem.reference, problem.solution) == (answer, 'w')


def test_jsonl_errors_give_line_numbers_from_1(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('{"prompt": "p", "answer": 1}\n\n{"prompt": "p"')
  with pytest.raises(ValueError, match=r'row 3 of .*a\.jsonl must be JSON'):
    FileSource(path)
  path.write_text('[1]\n')
  with pytest.raises(ValueError, match=r'row 1 .* named columns, got a list'):
    FileSource(path)
  path.write_bytes(b'{"prompt": "\xff"}\n')
  with pytest.raises(ValueError, match=r'row 1 of .*a\.jsonl must be JSON'):
    FileSource(path)


def test_refuses_missing_and_empty_files(tmp_path):
  for name in ('a.jsonl', 'a.parquet', 'a.array_record'):
    with pytest.raises(ValueError, match=rf'{name} must be a file of problems'):
      open_records(tmp_path / name)
  (tmp_path / 'a.jsonl').write_text('\n\n')
  write_array_record(tmp_path / 'a.array_record', [])
  empty = pyarrow.table({'prompt': pyarrow.array([], pyarrow.string())})
  pyarrow.parquet.write_table(empty, tmp_path / 'a.parquet')
  for name in ('a.jsonl', 'a.parquet', 'a.array_record'):
    with pytest.raises(ValueError, match=rf'{name} must hold .*, got none'):
      open_records(tmp_path / name)


def test_refuses_files_of_another_kind(tmp_path):
  with pytest.raises(ValueError, match=r'one of \.jsonl, .* got sums\.csv'):
    open_records('sums.csv')
  (tmp_path / 'a.parquet').write_text('no parquet')
  with pytest.raises(ValueError) as caught:
    open_records(tmp_path / 'a.parquet')
  assert str(caught.value).startswith(
    f'{tmp_path / "a.parquet"} must be a Parquet file, got: '
  )
  path = write_array_record(
    tmp_path / 'a.array_record', [b'{"prompt": "p", "answer": 1}', b'?']
  )
  with pytest.raises(
    ValueError, match=r'row 1 of .* must be JSON, got Expecting'
  ):
    FileSource(path)


def test_opens_numbered_shards(tmp_path):
  path = tmp_path / 'sums.array_record-00000-of-00001'
  write_array_record(path, [json.dumps(ROWS[0]).encode()])
  assert len(open_records(path)) == 1


def test_reads_tfds(tfds_folder):
  source = FileSource(
    TfdsRecords('sums', split='train', data_dir=tfds_folder), name='sums'
  )
  assert len(source) == 5
  assert source[2] == Problem(
    prompt='2 + 1 é',
    reference='3',
    source='sums',
    kind='math',
    key=source[2].key,
    location='row 2 of tfds:sums/train',
    column='answer',
  )
  raw = TfdsRecords('sums', split='train[:2]', data_dir=tfds_folder)
  assert [row['choices'] for row in raw] == [['a0', 'b'], ['a1', 'b']]
  assert type(raw[0]['answer']) is int
  assert raw[0]['rate'] == 0.1


def test_refuses_invalid_tfds_datasets(tfds_folder, tmp_path):
  records = TfdsRecords('sums', split='train', data_dir=tfds_folder)
  schema = custom_schema('question', 'answr')
  with pytest.raises(ValueError, match=r"row 0 of tfds:sums/train .*'answr'"):
    FileSource(records, schema=schema)
  with pytest.raises(ValueError, match="got 'products', which is not in"):
    TfdsRecords('products', split='train', data_dir=tmp_path)
  with pytest.raises(ValueError, match="'products', which is not in the def"):
    open_records('tfds:products/train')
  with pytest.raises(ValueError, match="Unknown split 'test'"):
    TfdsRecords('sums', split='test', data_dir=tfds_folder)
  with pytest.raises(ValueError, match='must hold at least one problem, got n'):
    TfdsRecords('sums', split='train[:0]', data_dir=tfds_folder)


def test_reads_tfds_without_tensorflow(tfds_folder):
  trap = tfds_folder / 'trap'
  (trap / 'tensorflow').mkdir(parents=True)
  (trap / 'tensorflow' / '__init__.py').write_text('raise SystemExit(1)')
  program = f"""
    import sys
    sys.path.insert(0, {str(trap)!r})
    from covrl.data import FileSource, TfdsRecords
    records = TfdsRecords('sums', split='train', data_dir={str(tfds_folder)!r})
    assert FileSource(records)[4].reference == '5'
    assert 'tensorflow' not in sys.modules
  """
  subprocess.run(
    [sys.executable, '-c', textwrap.dedent(program)], check=True, cwd=ROOT
  )


@pytest.mark.parametrize('split', ['nope', 'train[', 'train[9:]', ''])
def test_refuses_splits_that_a_tfds_dataset_does_not_have(split, tfds_folder):
  with pytest.raises(ValueError) as caught:
    TfdsRecords('sums', split=split, data_dir=tfds_folder)
  message = f'tfds:sums/{split} must be a split of the dataset, got: '
  assert str(caught.value).startswith(message)
  assert '\n' not in str(caught.value)


def test_refuses_damaged_tfds_datasets(tfds_folder):
  (tfds_folder / 'sums' / '1.0.0' / 'dataset_info.json').write_text('{')
  with pytest.raises(
    ValueError, match=r"^a TFDS dataset must be prepared, got 'sums': Failed"
  ):
    TfdsRecords('sums', split='train', data_dir=tfds_folder)


def test_refuses_tfds_datasets_with_damaged_or_other_files(tfds_folder):
  """Examples beyond the stated number would be left out."""
  (shard,) = tfds_folder.rglob('sums-train.array_record-*')
  info = shard.with_name('dataset_info.json')
  text, content = info.read_text(), shard.read_bytes()

  def refused(message):
    with pytest.raises(ValueError) as caught:
      FileSource(TfdsRecords('sums', split='train', data_dir=tfds_folder))
    assert message in str(caught.value)
    assert '\n' not in str(caught.value)

  for length in (3, 7):
    info.write_text(text.replace('"5"', f'"{length}"'))
    refused(f'{shard} must hold {length} examples, as dataset_info.json')
  info.write_text(text)
  shard.write_bytes(content[: len(content) // 2])
  refused(f'{shard} must be an ArrayRecord file, got: RuntimeError')
  shard.write_bytes(b'')
  refused(f'{shard} must be an ArrayRecord file, got: ArrayRecord file')
  shard.unlink()
  refused(f'{shard} must be a file of problems, got none')
  index = content.index(b'3 + 1')
  shard.write_bytes(content[:index] + b'4' + content[index + 1 :])
  refused('row 3 of tfds:sums/train must be an example that can be read')


def test_jsonl_rows_can_be_read_in_any_order(tmp_path):
  records = JsonlRecords(write_jsonl(tmp_path / 'a.jsonl', ROWS))
  assert records[4] == ROWS[4]
  assert records[0] == ROWS[0]


def test_files_that_are_written_to_while_they_are_read_are_refused(
  tmp_path, tfds_folder
):
  """Rows of ArrayRecord files are read during a run; the other files once."""
  rows = [{'question': f'{n} + 1', 'answer': str(n + 1)} for n in range(5)]
  file, _ = write('array_record', tmp_path, rows)
  (shard,) = tfds_folder.rglob('sums-train.array_record-*')
  for path, records in (
    (file, FileSource(file)),
    (shard, TfdsRecords('sums', split='train', data_dir=tfds_folder)),
  ):
    first, content = records[0], path.read_bytes()
    # A file in its place leaves the open one as it is.
    path.rename(tmp_path / 'moved')
    path.write_bytes(b'')
    assert records[0] == first
    (tmp_path / 'moved').rename(path)
    assert records[0] == first
    os.utime(path, ns=(0, 0))
    path.write_bytes(content)
    with pytest.raises(
      ValueError, match=f'{path.name} must not be written to while it is read'
    ):
      records[0]
