# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in a store, and damage to their files."""

import numpy as np

from covrl.run.checkpoint import MANIFEST


def latest(store):
  """Returns the latest checkpoint of a store, which must have one."""
  checkpoint = store.latest()
  assert checkpoint is not None
  return checkpoint


def flip(file, seed):
  """Flips a random bit of a file."""
  content = bytearray(file.read_bytes())
  bit = np.random.default_rng(seed).integers(len(content) * 8)
  content[bit // 8] ^= 1 << (bit % 8)
  file.write_bytes(content)


def damage(directory, kind):
  """Damages the manifest or the largest array of a checkpoint."""
  manifest = directory / MANIFEST
  if kind == 'manifest':
    manifest.write_text('{')
  elif kind == 'edited manifest':
    text = manifest.read_text()
    assert '"position": ' in text
    manifest.write_text(text.replace('"position": ', '"position": 1'))
  else:
    file = max(directory.rglob('d/*'), key=lambda file: file.stat().st_size)
    if kind == 'data':
      flip(file, 0)
    else:
      file.unlink()
