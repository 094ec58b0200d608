# SPDX-License-Identifier: Apache-2.0
"""Writes GGUF files with changed fields and tensors."""

import gguf
from pretrained.fixtures import MODELS

GOLDEN = MODELS.with_name('gguf')


def write_changed_gguf(tmp_path, *, without=(), tensors=None, **fields):
  """A GGUF file of the golden Llama with other fields.

  Args:
    tmp_path: directory of the file.
    without: fields to leave out.
    tensors: further tensors, by their names in the file.
    fields: values of fields, with `__` for a dot.
  """
  reader = gguf.GGUFReader(GOLDEN / 'llama.gguf')
  file = tmp_path / 'changed.gguf'
  values = {key.replace('__', '.'): value for key, value in fields.items()}
  architecture = values.pop('general.architecture', 'llama')
  writer = gguf.GGUFWriter(str(file), architecture)
  for key, field in reader.fields.items():
    is_skipped = key.startswith('GGUF.') or key == 'general.architecture'
    if is_skipped or key in without:
      continue
    field_type, *item_types = field.types
    if key in values:
      add_field(writer, key, values.pop(key))
    else:
      writer.add_key_value(key, field.contents(), field_type, *item_types)
  for key, value in values.items():
    add_field(writer, key, value)
  for tensor in reader.tensors:
    writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
  for key, value in (tensors or {}).items():
    writer.add_tensor(key, value)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return file


def add_field(writer, name, value):
  """Adds a field, of the type that belongs to its value."""
  field_type = gguf.GGUFValueType.get_type(value)
  item_type = None
  if isinstance(value, list):
    item_type = gguf.GGUFValueType.get_type(value[0])
  writer.add_key_value(name, value, field_type, item_type)
