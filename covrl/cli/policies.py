# SPDX-License-Identifier: Apache-2.0
"""Distinguishes run directories from pretrained models."""

from __future__ import annotations

import re


def is_run(directory: str) -> bool:
  """Returns whether `directory` is a run's and not a pretrained model's.

  A pretrained model is a directory with a model's config, or a name on the
  Hugging Face hub, such as `Qwen/Qwen2.5-0.5B`. Anything else counts as a run,
  which may turn out not to exist.
  """
  from covrl import storage

  path = storage.as_path(directory)
  if (path / 'recipe').is_dir():
    return True
  if path.exists():
    names = ('config.json', 'adapter_config.json')
    return not any((path / name).is_file() for name in names)
  return re.fullmatch(r'[\w.-]+/[\w.-]+', directory) is None
