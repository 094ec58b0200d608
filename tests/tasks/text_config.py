# SPDX-License-Identifier: Apache-2.0
"""Configurations of text tasks with the golden files."""

import dataclasses
import pathlib

from covrl.config import Config

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
DATA = GOLDEN / 'data'
MODEL = GOLDEN / 'tokenizers' / 'bytes'


def config(train='', suites='', **data):
  """A configuration whose `data.train` and suites are golden files."""
  result = Config(pretrained=str(MODEL))
  result.rollout.max_prompt_length = 1024
  result.data.train = ','.join(
    str(DATA / name) for name in train.split(',') if name
  )
  result.data = dataclasses.replace(result.data, **data)
  result.evaluate.suites = suites
  result.evaluate.suite_directory = str(DATA / 'suites')
  return result
