# SPDX-License-Identifier: Apache-2.0
"""Renders the Jinja templates of the reports, and writes pages atomically."""

from __future__ import annotations

import pathlib
from typing import Any

import jinja2
from etils import epath

from covrl import storage


def render(template: str, **values: Any) -> str:
  """Renders a template of `templates/` with all values escaped.

  Lone surrogates, which a file cannot hold, become question marks.
  """
  folder = pathlib.Path(__file__).parents[1] / 'templates'
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(folder),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  page = environment.get_template(template).render(values)
  return page.encode(errors='replace').decode()


def write_page(path: epath.Path, content: str) -> epath.Path:
  """Replaces a page atomically, so that readers never see a part of it."""
  storage.write_atomically(path, content)
  return path


def check_output_path(path: epath.Path) -> None:
  """Checks that a page would replace no file other than a page.

  Args:
    path: the file of the page.

  Raises:
    ValueError: it exists, and neither its name nor its content is a page's.
  """
  if path.suffix.lower() in ('.html', '.htm') or not path.is_file():
    return
  with storage.writing(path), storage.open_binary(path) as stream:
    first_bytes = stream.read(100)
  if not first_bytes.lstrip().lower().startswith(b'<!doctype html'):
    raise ValueError(
      f'--output must be a new file or a page, got {path}, which holds something'
      ' else'
    )
