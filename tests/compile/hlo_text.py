# SPDX-License-Identifier: Apache-2.0
"""Modules with one computation, parsed from the lines of their instructions."""

from covrl.compile.hlo import parse


def parse_lines(*instructions):
  """Parses a computation of a TPU program."""
  body = '\n'.join(f'  {line}' for line in instructions)
  return parse(f'ENTRY %main (x: f32[]) -> f32[] {{\n{body}\n}}')


def parse_gpu_lines(*instructions):
  """Parses a computation of a GPU program."""
  body = '\n'.join(f'  {line}' for line in instructions)
  return parse(f'ENTRY %main (x: f32[]) -> f32[] {{\n{body}\n}}', 'gpu')
