# SPDX-License-Identifier: Apache-2.0
"""Random access to the rows of JSON Lines, Parquet, ArrayRecord and TFDS files.

Every reader gives the location of a row for error messages. TensorFlow is not
needed, even for TFDS, whose ArrayRecord files are read directly.
"""

from __future__ import annotations

import abc
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from covrl import storage
from covrl.data.json_text import parse_json
from covrl.data.open_files import OpenFiles

_PARQUET_BATCH = 1024  # rows that are decoded at a time
_NARROW_DTYPES = (np.float16, np.float32)

TFDS = 'tfds:'
"""Prefix of the name of a prepared TFDS dataset: `tfds:gsm8k/test`."""


class Records(abc.ABC):
  """Rows by index; `records[index]` may be called from several threads.

  A row is normally a mapping from column names to values.

  Attributes:
    file: name of the file or dataset.
  """

  file: str

  @abc.abstractmethod
  def __len__(self) -> int: ...

  @abc.abstractmethod
  def __getitem__(self, index: int) -> Any: ...

  def __iter__(self) -> Iterator[Any]:
    return (self[index] for index in range(len(self)))

  def location(self, index: int) -> str:
    """Location of a row, counted from 0: `row 3 of sums.parquet`."""
    return f'row {index} of {self.file}'


def open_records(name: epath.PathLike) -> Records:
  """Opens a file with the reader for its suffix.

  Args:
    name: a `.jsonl`, `.parquet` or `.array_record` file, or a prepared TFDS
      dataset in the ArrayRecord format, `tfds:NAME/SPLIT`.

  Raises:
    ValueError: the file is missing, empty, or of another kind.
  """
  if str(name).startswith(TFDS):
    dataset, _, split = str(name).removeprefix(TFDS).rpartition('/')
    return TfdsRecords(dataset or split, split=split if dataset else 'train')
  for suffix, reader in _READERS.items():
    # Shards may have a number after the suffix: x.array_record-00000-of-00002.
    if re.fullmatch(
      rf'.*{re.escape(suffix)}(-\d+-of-\d+)?', str(name), re.DOTALL
    ):
      return reader(name)
  raise ValueError(
    f'a file of problems must be one of {", ".join(_READERS)} or'
    f' {TFDS}NAME/SPLIT, got {name}'
  )


class JsonlRecords(Records):
  """JSON objects, one per line; blank lines are skipped.

  Args:
    path: the file.

  Raises:
    ValueError: the file is missing or empty. While reading: a line is not
      JSON.
  """

  def __init__(self, path: epath.PathLike) -> None:
    file = _require_file(path)
    self.file = str(file)
    lines = _read(file).split(b'\n')
    self._rows = [n for n, line in enumerate(lines, start=1) if line.strip()]
    self._lines = [lines[row - 1] for row in self._rows]
    _require_rows(self)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Any:
    return parse_json(self._lines[index], self.location(index))

  def location(self, index: int) -> str:
    """Line number of a row, counted from 1: `row 3 of sums.jsonl`."""
    return f'row {self._rows[index]} of {self.file}'


class ParquetRecords(Records):
  """Rows of a Parquet file.

  Numbers of 16 and 32 bits have their shortest decimals: 0.1, and not
  0.10000000149011612.

  Args:
    path: the file.

  Raises:
    ValueError: the file is missing, empty, or not a Parquet file.
  """

  def __init__(self, path: epath.PathLike) -> None:
    import pyarrow
    import pyarrow.parquet

    file = _require_file(path)
    self.file = str(file)
    try:
      reader = pyarrow.BufferReader(_read(file))
      self._table: Any = pyarrow.parquet.read_table(reader)
    except (pyarrow.ArrowException, OSError, MemoryError) as error:
      raise ValueError(
        f'{file} must be a Parquet file, got: {_first_sentence(error)}'
      ) from None
    _require_rows(self)
    # The name of the type of 64 bits is 'double'.
    self._narrow_fields = [
      f for f in self._table.schema if 'float' in str(f.type)
    ]

  def __len__(self) -> int:
    return self._table.num_rows

  def __getitem__(self, index: int) -> Any:
    try:
      return self._shorten_narrow_columns(
        self._table.slice(index, 1).to_pylist()[0]
      )
    except (ValueError, OverflowError) as error:
      # Values are not checked when a file is opened: text may not be UTF-8.
      raise ValueError(
        f'{self.location(index)} must hold valid values, got: {error}'
      ) from None

  def __iter__(self) -> Iterator[Any]:
    for start in range(0, len(self), _PARQUET_BATCH):
      try:
        rows = self._table.slice(start, _PARQUET_BATCH).to_pylist()
      except (ValueError, OverflowError):
        # One by one, to name the row.
        stop = min(start + _PARQUET_BATCH, len(self))
        yield from (self[index] for index in range(start, stop))
        continue
      yield from map(self._shorten_narrow_columns, rows)

  def _shorten_narrow_columns(self, row: dict[str, Any]) -> dict[str, Any]:
    """Replaces numbers of narrow columns by their shortest decimals."""
    shortened = {
      f.name: _with_shortest_decimals(row[f.name], f.type)
      for f in self._narrow_fields
    }
    return {**row, **shortened}


class ArrayRecordRecords(Records):
  """JSON objects in an ArrayRecord file.

  Args:
    path: the file.

  Raises:
    ValueError: the file is missing, empty, or not an ArrayRecord file. While
      reading: a record is damaged, or is not JSON.
  """

  def __init__(self, path: epath.PathLike) -> None:
    import grain

    file = _require_file(path)
    self.file = str(file)
    local = storage.local_copy(file)
    self._files = OpenFiles([local])
    try:
      self._records: Any = grain.sources.ArrayRecordDataSource([str(local)])
    except RuntimeError as error:
      raise ValueError(
        f'{file} must be an ArrayRecord file, got: {_first_sentence(error)}'
      ) from None
    _require_rows(self)

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Any:
    self._files.check()
    try:
      record = self._records[index]
    except RuntimeError as error:
      raise ValueError(
        f'{self.location(index)} must be a record that can be'
        f' read, got: {_first_sentence(error)}'
      ) from None
    return parse_json(record, self.location(index))


class TfdsRecords(Records):
  """Examples of a prepared TFDS dataset in the ArrayRecord format.

  Numbers of 16 and 32 bits have their shortest decimals, as in Parquet files.

  Args:
    name: name of the dataset, optionally with config and version.
    split: `train`, `test[:100]`, ….
    data_dir: directory of the prepared dataset; TFDS's default unless given.

  Raises:
    ValueError: the dataset or the split is missing or empty, or a file of it is
      missing, damaged or has another number of examples than the dataset states.
      While reading: an example is damaged.
  """

  def __init__(
    self, name: str, *, split: str, data_dir: epath.PathLike | None = None
  ) -> None:
    import tensorflow_datasets as tfds
    from google.protobuf.json_format import ParseError

    self.file = f'{TFDS}{name}/{split}'
    try:
      builder: Any = tfds.builder(
        name, data_dir=None if data_dir is None else str(data_dir)
      )
    except tfds.core.DatasetNotFoundError as error:
      folder = 'the default folder' if data_dir is None else str(data_dir)
      raise ValueError(
        f'a TFDS dataset must be prepared, got {name!r}, which is not in {folder}'
      ) from error
    except (ParseError, ValueError) as error:
      raise ValueError(
        f'a TFDS dataset must be prepared, got {name!r}: {_first_sentence(error)}'
      ) from None
    # TFDS cannot make a data source of an empty split.
    self._records: Any = ()
    try:
      files = builder.info.splits[split].file_instructions
    except (KeyError, ValueError) as error:
      raise ValueError(
        f'{self.file} must be a split of the dataset, got: {_first_sentence(error)}'
      ) from None
    for file in files:
      _check_shard(_require_file(file.filename), file.examples_in_shard)
    if files:
      self._files = OpenFiles(file.filename for file in files)
      self._records = builder.as_data_source(split=split)
    self._narrow_dtypes = {
      name: dtype
      for name, feature in builder.info.features.items()
      if (dtype := getattr(feature, 'np_dtype', None)) in _NARROW_DTYPES
    }
    _require_rows(self)

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Any:
    self._files.check()
    try:
      row = _to_json_types(self._records[index])
    except RuntimeError as error:
      raise ValueError(
        f'{self.location(index)} must be an example that can be read, got:'
        f' {_first_sentence(error)}'
      ) from None
    except UnicodeDecodeError as error:
      raise ValueError(
        f'{self.location(index)} must hold text in UTF-8, got: {error}'
      ) from None
    shortened = {
      name: _shortest_decimal(row[name], dtype)
      for name, dtype in self._narrow_dtypes.items()
    }
    return {**row, **shortened}


_READERS = {
  '.jsonl': JsonlRecords,
  '.parquet': ParquetRecords,
  '.array_record': ArrayRecordRecords,
}


def _require_file(path: epath.PathLike) -> epath.Path:
  """Returns the path of a regular file; refuses others."""
  path = storage.as_path(path)
  # `epath` takes pipes and devices for files, which never end.
  is_local = not storage.is_bucket(path)
  if not (pathlib.Path(path) if is_local else path).is_file():
    raise ValueError(f'{path} must be a file of problems, got none')
  return path


def _check_shard(file: epath.Path, count: int) -> None:
  """Refuses a file of a TFDS dataset that is damaged or of another length.

  TFDS would leave out the examples of a longer one.
  """
  records = ArrayRecordRecords(file)
  if len(records) != count:
    raise ValueError(
      f'{file} must hold {count:,} examples, as dataset_info.json states, got'
      f' {len(records):,}'
    )


def _require_rows(records: Records) -> None:
  """Refuses files without rows."""
  if len(records) == 0:
    raise ValueError(f'{records.file} must hold at least one problem, got none')


def _read(file: epath.Path) -> bytes:
  """Reads a whole file."""
  try:
    return file.read_bytes()
  except OSError as error:
    raise ValueError(
      f'{file} must be a file that can be read, got: {error.strerror or error}'
    ) from None


def _first_sentence(error: BaseException) -> str:
  """The first sentence of an error, as one line without a full stop."""
  text = ' '.join(str(error).split()).partition('. ')[0].removesuffix('.')
  return text or type(error).__name__


def _with_shortest_decimals(value: Any, arrow_type: Any) -> Any:
  """Replaces narrow floats in a value of an Arrow type by shortest decimals."""
  import pyarrow.types as types

  if types.is_map(arrow_type):
    pair_types = arrow_type.key_type, arrow_type.item_type
    return value and [
      tuple(
        _with_shortest_decimals(item, item_type)
        for item, item_type in zip(pair, pair_types, strict=True)
      )
      for pair in value
    ]
  if types.is_dictionary(arrow_type):  # Values that are stored once each.
    return _with_shortest_decimals(value, arrow_type.value_type)
  if isinstance(value, list) and hasattr(arrow_type, 'value_type'):
    return [
      _with_shortest_decimals(item, arrow_type.value_type) for item in value
    ]
  if isinstance(value, dict) and types.is_struct(arrow_type):
    return {
      f.name: _with_shortest_decimals(value[f.name], f.type) for f in arrow_type
    }
  if types.is_float16(arrow_type) or types.is_float32(arrow_type):
    return _shortest_decimal(value, arrow_type.to_pandas_dtype())
  return value


def _shortest_decimal(value: Any, dtype: Any) -> Any:
  """The shortest decimal of a narrow float, or of each in a list.

  >>> _shortest_decimal(float(np.float32(0.1)), np.float32)
  0.1
  """
  if isinstance(value, list):
    return [_shortest_decimal(item, dtype) for item in value]
  return None if value is None else float(str(np.dtype(dtype).type(value)))


def _to_json_types(value: Any) -> Any:
  """Converts bytes to text, and NumPy values to numbers and lists."""
  if isinstance(value, bytes):
    return value.decode()
  if hasattr(value, 'tolist'):
    return _to_json_types(value.tolist())
  if isinstance(value, list):
    return [_to_json_types(item) for item in value]
  if isinstance(value, Mapping):
    return {name: _to_json_types(item) for name, item in value.items()}
  return value
