# SPDX-License-Identifier: Apache-2.0
"""Checks docstrings, comments, messages and documents for unclear phrases.

  python tests/check_prose.py [FILE_OR_DIRECTORY ...]

A docstring begins with a noun phrase or a verb; errors say "is not a
directory", not "is no directory"; programs are not described as people. An
error's message is one clause, "… must …, got …", in lower case and without a
full stop. There is no list of exceptions: rephrase the text, or change a pattern
here.
"""

from __future__ import annotations

import ast
import io
import pathlib
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator

ROOT = pathlib.Path(__file__).parents[1]
DIRECTORIES = ('covrl', 'configs', 'launch', 'tests')
DOCUMENTS = ('README.md', 'CHANGELOG.md')

# First words that make a docstring's first line a clause without a subject.
_OPENING = re.compile(
  r'(What|Whose|Which|Where|Who|Whom|How|Why|When|That|From)\b'
)

# The same for headings of documents.
_HEADING = re.compile(r'#+ (What|Whose|Which|Where|Who|How|Why)\b')

# Unclear phrases, each with its replacement.
_PHRASES = {
  r'(?<!there )(?<!There )\b(is|are|was|were) no (?!longer|more|less|other than|larger|smaller|greater|later|earlier|wider|better|worse)': 'is not a …',
  r'\b(is|are|was|were) none\b': 'is absent, is empty, is not a …',
  r'\bnobody\b': 'nothing, no one of …; or the passive voice',
  r'\bof one mind\b': 'agree',
  r'\b(is|are) told\b|\btold to\b': 'receives, is given, is stopped',
  r'\bdeserv|\bbefall': 'is expected; happens to',
  r'\bsays? of itself\b': 'name the values',
  r'\bforetell|\bforesee|\bforesaw|\bforetold': 'predict',
  r'\ba room of (its|their) own\b': 'a module of its own',
  r'\bin the clothes of\b': 'wrapped as',
  r'\bsigns? of life\b': 'heartbeat',
  r'\bsecond opinion\b': 'fallback grader',
  r'\b(shall|whereof|thereof|wherein)\b': 'must, will; of which; in which',
  r'\bone of one\'s own\b': 'custom',
  r'\blikewise\b': 'the same as …; repeat the words',
}

# A description of an argument or attribute that consists of a pronoun.
_EMPTY_DESCRIPTION = re.compile(
  r'^\s+\w+: (whose|where|how|what|which|when|who|it|them|its|theirs|his'
  r'|as above|see above)\b[^\n]{0,12}\.$',
  re.MULTILINE,
)

# Messages of errors in another form than "… must …, got …".
_MESSAGES = {
  r'^(A|An|The|At|As|Each|Every|All|No|There|This|Expected|Invalid)\b': 'begin in lower case',
  r'\.$': 'end without a full stop',
  r'(is|are|was|were) required, (but )?got': '… must …, got …',
  r'^(expected|invalid)\b': '… must …, got …',
  r'^[^ ]*: (must|cannot|needs?)\b': '… must …, without a colon',
  r'^(?!.*\bmust\b).*\bneeds?\b.*, got\b': '… must …, got …',
}


def check(file: pathlib.Path) -> Iterator[str]:
  """Yields one line `FILE:LINE: message` per phrase to rewrite."""
  text = file.read_text()
  if file.suffix == '.md':
    for line, heading in enumerate(text.splitlines(), 1):
      if _HEADING.match(heading):
        yield f'{file}:{line}: heading must be a noun or verb: {heading!r}'
    yield from _phrases(file, enumerate(text.splitlines(), 1))
    return
  for line, docstring in _docstrings(text):
    if _OPENING.match(docstring.strip()):
      first = docstring.strip().splitlines()[0]
      yield f'{file}:{line}: docstring must open with a noun or verb: {first!r}'
    for match in _EMPTY_DESCRIPTION.finditer(docstring):
      yield f'{file}:{line}: says nothing: {match.group().strip()!r}'
  # Tests also raise errors in the words of other libraries.
  for line, message in [] if 'tests' in file.parts else _messages(text):
    for pattern, instead in _MESSAGES.items():
      if re.search(pattern, message):
        yield f'{file}:{line}: error {message!r}, write: {instead}'
  yield from _phrases(file, _prose(text))


def _phrases(
  file: pathlib.Path, texts: Iterable[tuple[int, str]]
) -> Iterator[str]:
  """Yields a message for each phrase in texts, given with their line numbers."""
  for line, prose in texts:
    for pattern, instead in _PHRASES.items():
      if match := re.search(pattern, prose):
        line_number = line + prose.count('\n', 0, match.start())
        yield f'{file}:{line_number}: {match.group()!r}, write: {instead}'


def _docstrings(text: str) -> Iterator[tuple[int, str]]:
  """Yields the line and text of every docstring."""
  kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, kinds) and (docstring := ast.get_docstring(node)):
      yield getattr(node, 'lineno', 1), docstring


def _messages(text: str) -> Iterator[tuple[int, str]]:
  """Messages of the errors that are raised, `{}` for every value in them."""
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
      for argument in node.exc.args[:1]:
        if isinstance(argument, ast.JoinedStr):
          parts = argument.values
        else:
          parts = [argument]
        if all(isinstance(p, ast.Constant | ast.FormattedValue) for p in parts):
          yield (
            node.lineno,
            ''.join(
              str(part.value) if isinstance(part, ast.Constant) else '{}'
              for part in parts
            ),
          )


def _prose(text: str) -> Iterator[tuple[int, str]]:
  """Comments and string literals, f-strings included, with their lines."""
  kinds = {tokenize.COMMENT, tokenize.STRING}
  kinds |= {getattr(tokenize, 'FSTRING_MIDDLE', tokenize.STRING)}
  for token in tokenize.generate_tokens(io.StringIO(text).readline):
    if token.type in kinds:
      yield token.start[0], token.string


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
  """Python and Markdown files below a folder, in order."""
  return sorted([*folder.rglob('*.py'), *folder.rglob('*.md')])


def main(arguments: list[str]) -> int:
  """Checks the files and directories given, or the whole project."""
  paths = [pathlib.Path(name) for name in arguments]
  paths = paths or [ROOT / name for name in (*DIRECTORIES, *DOCUMENTS)]
  files = [
    file
    for path in paths
    for file in ([path] if path.is_file() else _files(path))
    if file != pathlib.Path(__file__)
  ]
  messages = [message for file in files for message in check(file)]
  print(
    '\n'.join(messages) if messages else f'{len(files)} files: prose is plain'
  )
  return bool(messages)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
