# SPDX-License-Identifier: Apache-2.0
"""Parser of bracketed expressions: tuples, intervals, sets, environments."""

from __future__ import annotations

import abc
from collections.abc import Callable

from covrl.rewards.math import ast, vocabulary
from covrl.rewards.math.ast import Node, ParseError
from covrl.rewards.math.lexer import Token, TokenStream


class BracketParser(TokenStream, abc.ABC):
  """Parser of brackets, given parsers of what they contain."""

  def __init__(self, tokens: list[Token]) -> None:
    super().__init__(tokens)
    # Number of absolute values in progress; then | closes one.
    self._open_bars = 0
    # Whether a colon makes a ratio; not so in {x : …}.
    self._has_ratios = True

  @abc.abstractmethod
  def statements(self) -> Node:
    """Parses statements separated by commas, semicolons, `and` or `or`."""

  @abc.abstractmethod
  def sum(self) -> Node:
    """Parses a sum of terms."""

  def bracketed(self, opening: str) -> Node:
    """Parses what follows an opening bracket."""
    match opening:
      case '{':
        return self.until('}', self.statements)
      case '\\{':
        return self._set()
      case '|':
        self._open_bars += 1
        node = self.until('|', self.sum)
        self._open_bars -= 1
        if node.kind == 'matrix':
          return ast.determinant(node)
        return Node('absolute', (node,))
      case '(' | '[' | ']':
        return self._tuple(opening)
    raise ParseError(f'an expression must begin here, got {opening!r}')

  def until(self, closing: str, parse_content: Callable[[], Node]) -> Node:
    """Parses an expression and the bracket that closes it."""
    node = parse_content()
    self.expect(closing)
    return node

  def _tuple(self, opening: str) -> Node:
    """Parses a tuple, an interval or an expression in parentheses."""
    outer_open_bars, self._open_bars = self._open_bars, 0
    if self.accept(')'):
      raise ParseError('empty parentheses')
    node = self.statements()
    self._open_bars = outer_open_bars
    # Open intervals may be written with brackets turned outwards.
    outward = ('[',) if opening in '[]' else ()
    closing = self.expect(')', ']', *outward)
    brackets = opening.replace(']', '(') + closing.replace('[', ')')
    if node.kind == 'list' and node.value == ',':
      return Node('tuple', node.parts, brackets)
    if brackets == '()':
      return node if node.kind != 'text' else Node('text', (), node.value)
    return Node('tuple', (node,), brackets)

  def _set(self) -> Node:
    """Parses `{1, 2}` or `{x | …}`."""
    if self.accept('\\}'):
      return Node('set')
    outer_has_ratios, self._has_ratios = self._has_ratios, False
    outer_open_bars, self._open_bars = self._open_bars, 1
    node = self.statements()
    self._open_bars, self._has_ratios = outer_open_bars, outer_has_ratios
    if self.accept('|', ':'):
      condition = self.statements()
      self.expect('\\}')
      return Node('builder', (node, condition))
    self.expect('\\}')
    return Node('set', node.parts if node.kind == 'list' else (node,))

  def environment(self) -> Node:
    """Parses a matrix, a determinant or cases, after `\\begin`."""
    name = self.argument_text()
    if name == 'array' and self.peek().text == '{':
      self.argument_text()
    rows: list[list[Node]] = [[]]
    while not self.accept('\\end'):
      if self.accept('\\\\'):
        rows.append([])
      elif self.accept('&', '\\hline'):
        continue
      else:
        rows[-1].append(self.statements())
    if self.argument_text() != name:
      raise ParseError('the end of another environment')
    rows = [row for row in rows if row]
    if not rows or len({len(row) for row in rows}) != 1:
      raise ParseError('rows of different lengths')
    cells = tuple(cell for row in rows for cell in row)
    shape = len(rows), len(rows[0])
    if name in vocabulary.DETERMINANTS:
      return ast.determinant(Node('matrix', cells, shape))
    kind = 'matrix' if name in vocabulary.MATRICES else name
    return Node(kind, cells, shape)
