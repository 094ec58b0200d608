# SPDX-License-Identifier: Apache-2.0
"""Headers of GGUF files: malformed and truncated ones are refused by name."""

import pytest
from pretrained.fixtures import MODELS

from covrl.pretrained import load_policy
from covrl.pretrained.gguf.header import read_header
from covrl.storage import as_path

GOLDEN = MODELS.with_name('gguf')


def header_bytes(fields=b'', counts=(0, 0), version=3):
  """Returns the beginning of a GGUF file: magic, version, counts, fields."""
  head = b'GGUF' + version.to_bytes(4, 'little')
  return head + b''.join(n.to_bytes(8, 'little') for n in counts) + fields


def text_bytes(text):
  """Returns a text with its length, as in a GGUF file."""
  return len(text).to_bytes(8, 'little') + text


def tensor_bytes(name=b'w', sizes=(32,), kind=0, offset=0):
  """Returns the entry of a tensor in a GGUF header."""
  parts = [text_bytes(name), len(sizes).to_bytes(4, 'little')]
  parts += [size.to_bytes(8, 'little') for size in sizes]
  parts += [kind.to_bytes(4, 'little'), offset.to_bytes(8, 'little')]
  return b''.join(parts)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', r'must have 4 bytes or more, for the first four bytes, got 0'),
    (b'PK\x03\x04' + bytes(40), 'must be a GGUF file, got another'),
    (header_bytes(version=1), r'version of GGUF must be .*got 1'),
    (header_bytes(version=3 << 24), 'must be .*little-endian, got'),
    (header_bytes(counts=(2**60, 0)), 'number of tensors must be at most'),
    (header_bytes(counts=(0, 2**60)), 'number of fields must be at most'),
    (header_bytes(counts=(0, 1)), 'for the name of field 0, got 24'),
    (header_bytes((2**62).to_bytes(8, 'little'), (0, 1)), 'bytes or more, for'),
    (
      header_bytes(text_bytes(b'a\xff') + bytes(8), (0, 1)),
      'the name of field 0 must be UTF-8',
    ),
    (
      header_bytes(text_bytes(b'a.b') + (99).to_bytes(4, 'little'), (0, 1)),
      r'the type of field a\.b must be a number up to 12, got 99',
    ),
    (
      header_bytes(
        text_bytes(b'a.b')
        + (9).to_bytes(4, 'little')
        + (0).to_bytes(4, 'little')
        + (2**60).to_bytes(8, 'little'),
        (0, 1),
      ),
      r'number of elements of a\.b must be at most 2097152, got',
    ),
    (
      header_bytes(
        text_bytes(b'a.b')
        + (9).to_bytes(4, 'little') * 2
        + (1).to_bytes(8, 'little'),
        (0, 1),
      ),
      r'the elements of field a\.b must be numbers or texts, got type 9',
    ),
    (
      header_bytes(2 * (text_bytes(b'a.b') + bytes(5)), (0, 2)),
      r'must hold the field a\.b once',
    ),
    (header_bytes(tensor_bytes(sizes=()), (1, 0)), 'w must have 1 to 4 axes'),
    (header_bytes(tensor_bytes(sizes=(0,)), (1, 0)), 'w must have axes of 1'),
    (
      header_bytes(tensor_bytes(kind=77), (1, 0)),
      'w must have a type of F32, .*got number 77',
    ),
    (header_bytes(tensor_bytes(kind=24), (1, 0)), 'got I8'),
    (
      header_bytes(tensor_bytes(sizes=(33,), kind=8), (1, 0)),
      'w must have rows of whole blocks of 32, as Q8_0 needs, got 33',
    ),
    (
      header_bytes(tensor_bytes(offset=1) + bytes(500), (1, 0)),
      'w must begin at a multiple of 32, got 1',
    ),
    (
      header_bytes(tensor_bytes(), (1, 0)),
      r'must have 192 bytes or more, for w',
    ),
    (
      header_bytes(
        tensor_bytes() + tensor_bytes(b'v', offset=32) + bytes(500), (2, 0)
      ),
      'v must begin at 128 or later, where w ends, got 32',
    ),
    (
      header_bytes(2 * tensor_bytes() + bytes(500), (2, 0)),
      'must hold w once',
    ),
    (
      header_bytes(
        tensor_bytes(sizes=(2**40, 2**40, 2**40)) + bytes(500), (1, 0)
      ),
      'bytes or more, for w, got',
    ),
  ],
)
def test_refuses_malformed_headers(content, message, tmp_path):
  file = tmp_path / 'm.gguf'
  file.write_bytes(content)
  with pytest.raises(ValueError, match=rf'm\.gguf.*{message}'):
    load_policy(file)


def test_refuses_truncated_files_at_every_length(tmp_path):
  content = (GOLDEN / 'llama.gguf').read_bytes()
  file = tmp_path / 'm.gguf'
  for size in range(0, len(content), 1997):
    file.write_bytes(content[:size])
    with pytest.raises(ValueError, match=r'm\.gguf must have \d+ bytes or mor'):
      read_header(as_path(file))
