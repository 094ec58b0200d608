# SPDX-License-Identifier: Apache-2.0
"""Reads randomly damaged model files, in a process with little memory.

  python tests/pretrained/fuzz_readers.py READER SEED COUNT

Every file must be read, or refused with a `ValueError` of one line that names a
file. Prints one line for each other outcome, with the damaged file's name.
"""

import json
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import tempfile
import warnings

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT.parent)]
MODELS, TOKENIZERS = ROOT / 'golden' / 'models', ROOT / 'golden' / 'tokenizers'

# Bytes of memory and seconds that one file may take.
MEMORY, SECONDS = 2**30, 10

VALUES = (
  None,
  True,
  -1,
  0,
  2,
  2**31,
  10**9,
  10**30,
  0.5,
  1e308,
  float('nan'),
  float('inf'),
  '',
  'a',
  '../a',
  '\ud800',
  [],
  [[]],
  [None],
  {},
  {'a': 1},
  [2**40, 2**40],
)


def damage_bytes(content, rng):
  """Changes, removes, repeats or inserts some bytes."""
  content = bytearray(content)
  for _ in range(rng.randint(1, 4)):
    position = rng.randrange(len(content) + 1)
    # Most of a file is weights; errors at its beginning have more effects.
    position = (
      position
      if rng.random() < 0.2
      else rng.randrange(min(len(content), 2000) + 1)
    )
    length = rng.choice((1, 1, 4, 8, 100))
    match rng.randrange(6):
      case 0:
        content[position : position + length] = rng.randbytes(length)
      case 1:
        del content[position : position + length]
      case 2:
        content[position:position] = content[position : position + length]
      case 3:
        del content[position:]
      case 4:
        number = rng.choice((2**8, 2**20, 2**32 - 1, 2**40, 2**62, 2**64 - 1))
        content[position : position + 8] = number.to_bytes(8, 'little')
      case _:
        content[position:position] = rng.choice(
          (b'[', b'{', b'"', b'\xff', b'[' * 5000)
        )
  return bytes(content)


def damage_value(value, rng):
  """Replaces, removes or adds one value somewhere in decoded JSON."""
  if isinstance(value, dict) and value and rng.random() < 0.8:
    name = rng.choice(list(value))
    if rng.random() < 0.1:
      return {k: v for k, v in value.items() if k != name}
    return value | {name: damage_value(value[name], rng)}
  if isinstance(value, list) and value and rng.random() < 0.8:
    position = rng.randrange(len(value))
    return [
      *value[:position],
      damage_value(value[position], rng),
      *value[position + 1 :],
    ]
  return rng.choice(VALUES)


def damage_json(content, rng):
  """Damages JSON as values, or as bytes."""
  if rng.random() < 0.3:
    return damage_bytes(content, rng)
  value = json.loads(content)
  for _ in range(rng.randint(1, 2)):
    value = damage_value(value, rng)
  return json.dumps(value).encode()


def damage_header(content, rng):
  """Damages the header of a safetensors file."""
  if rng.random() < 0.3:
    return damage_bytes(content, rng)
  size = int.from_bytes(content[:8], 'little')
  header = damage_json(content[8 : 8 + size], rng)
  return len(header).to_bytes(8, 'little') + header + content[8 + size :]


def load_everything(path):
  """Loads a policy and its parameters."""
  from covrl import pretrained

  pretrained.load_pretrained(path)


def load_configuration(path):
  """Loads a policy without its parameters."""
  from covrl import pretrained

  pretrained.load_policy(path)


def load_text_files(path):
  """Loads a tokenizer, and encodes and decodes a text."""
  from covrl import pretrained

  tokenizer = pretrained.load_tokenizer(path)
  tokenizer.decode(tokenizer.encode('What is 1 + 1?'))


# By reader: a directory, the file in it to damage, and the functions that damage
# the file and read the directory.
READERS = {
  'safetensors': (
    MODELS / 'mistral',
    'model.safetensors',
    damage_header,
    load_everything,
  ),
  'index': (
    MODELS / 'llama3',
    'model.safetensors.index.json',
    damage_json,
    load_everything,
  ),
  'config': (
    MODELS / 'qwen3_moe',
    'config.json',
    damage_json,
    load_configuration,
  ),
  'rope': (MODELS / 'gemma3', 'config.json', damage_json, load_configuration),
  'adapter': (
    MODELS / 'mistral_lora',
    'adapter_config.json',
    damage_json,
    load_configuration,
  ),
  'gguf': (
    ROOT / 'golden' / 'gguf',
    'llama.gguf',
    damage_bytes,
    load_everything,
  ),
  'gguf_tokenizer': (
    ROOT / 'golden' / 'gguf',
    'llama.gguf',
    damage_bytes,
    load_text_files,
  ),
  'tokenizer': (
    TOKENIZERS / 'bytes',
    'tokenizer.json',
    damage_json,
    load_text_files,
  ),
  'tokenizer_config': (
    TOKENIZERS / 'bytes',
    'tokenizer_config.json',
    damage_json,
    load_text_files,
  ),
  'generation_config': (
    TOKENIZERS / 'bytes',
    'generation_config.json',
    damage_json,
    load_text_files,
  ),
  'sentencepiece': (
    TOKENIZERS / 'pieces',
    'tokenizer.model',
    damage_bytes,
    load_text_files,
  ),
}


def limit_memory():
  """Allows `MEMORY` more than the process has now."""
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0])
  limit = pages * resource.getpagesize() + MEMORY
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def wrong_outcome(load, path):
  """Reads a file; returns a text on a wrong outcome, empty for a right one."""
  signal.alarm(SECONDS)
  try:
    load(path)
  except ValueError as error:
    text = str(error)
    names_file = str(path) in text or str(MODELS) in text
    if '\n' in text or not names_file:
      return f'unclear: {text[:300]!r}'
  except BaseException as error:
    return f'{type(error).__name__}: {str(error)[:300]!r}'
  finally:
    signal.alarm(0)
  return ''


def main(reader, seed, count):
  """Reads `count` damaged files; returns the number of wrong outcomes."""
  source, name, damage, load = READERS[reader]
  folder = pathlib.Path(tempfile.mkdtemp()) / reader
  shutil.copytree(source, folder)
  path = folder / name if name.endswith('.gguf') else folder
  # Adapters name their base models by relative paths.
  os.chdir(MODELS)
  warnings.simplefilter('ignore')
  signal.signal(signal.SIGALRM, time_is_up)
  # Imports and compiles everything before the memory is limited.
  load(path)
  limit_memory()
  original, num_wrong = (folder / name).read_bytes(), 0
  for file_seed in range(int(seed), int(seed) + int(count)):
    (folder / name).write_bytes(damage(original, random.Random(file_seed)))
    problem = wrong_outcome(load, path)
    if problem:
      num_wrong += 1
      print(file_seed, problem, flush=True)
  shutil.rmtree(folder.parent)
  return num_wrong


def time_is_up(number, frame):
  """Raises an error when a file takes too long."""
  raise TimeoutError(f'more than {SECONDS} seconds')


if __name__ == '__main__':
  sys.exit(bool(main(*sys.argv[1:])))
