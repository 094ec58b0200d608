# SPDX-License-Identifier: Apache-2.0
"""Recursive-descent parser of normalized TeX answers.

Produces syntax trees without evaluating them (see `numeric`) or comparing them
(see `equivalence`). Sums, integrals, limits and unknown commands are refused.
"""

from __future__ import annotations

import re

from covrl.rewards.math import ast, clock, lexer, vocabulary
from covrl.rewards.math.ast import Node, ParseError
from covrl.rewards.math.brackets import BracketParser
from covrl.rewards.math.lexer import Token

MAX_DEPTH = 40  # of nested expressions

# Commands with which a factor can begin.
_FACTORS = (
  vocabulary.SYMBOLS
  | vocabulary.FUNCTIONS
  | vocabulary.DECORATIONS
  | vocabulary.CONSTRUCTS
)


def parse(normalized: str, *, merge_thousands: bool = True) -> Node:
  r"""Parses a normalized answer.

  >>> parse('x = 3, 4').kind, parse('(3, 4]').value
  ('list', '(]')

  Args:
    normalized: an answer from `normalize_tex`.
    merge_thousands: whether `1,234` is a number; a list of two otherwise.

  Raises:
    ParseError: if the answer is outside of the supported grammar.
  """
  parser = _Parser(lexer.tokenize(normalized, merge_thousands=merge_thousands))
  node = parser.statements()
  parser.expect_end()
  return node


class _Parser(BracketParser):
  """Parser state; each method parses one level of precedence."""

  def __init__(self, tokens: list[Token]) -> None:
    super().__init__(tokens)
    self._depth = 0

  # From the lowest to the highest precedence.

  def statements(self) -> Node:
    """Parses statements separated by commas, semicolons, `and` or `or`."""
    self._depth += 1
    if self._depth > MAX_DEPTH:
      raise ParseError('too deep')
    items, separators = [self.statement()], set[str]()
    while self.peek().kind == 'separator':
      while self.peek().kind == 'separator':
        separators.add(self.next().text)
      if self.peek() is lexer.END:
        break
      items.append(self.statement())
    self._depth -= 1
    if len(items) == 1:
      return items[0]
    separator = next(
      (word for word in ('or', 'and') if word in separators), ','
    )
    return Node('list', tuple(items), separator)

  def statement(self) -> Node:
    """Parses an expression, or a chain of relations."""
    if self.accept('=', '\\approx', '\\doteq', '\\simeq', '\\equiv'):
      return self.statement()
    node = self._relation()
    if self.accept('\\pmod'):
      return Node('congruence', (node, self.argument(whole=True)))
    return node

  def _relation(self) -> Node:
    """Parses a chain such as a < b = c."""
    parts, signs = [self.set_expression()], []
    while (
      self.peek().kind != 'text' and self.peek().text in vocabulary.RELATIONS
    ):
      signs.append(vocabulary.RELATIONS[self.next().text])
      parts.append(self.set_expression())
    if not signs:
      return parts[0]
    return Node('relation', tuple(parts), tuple(signs))

  def set_expression(self) -> Node:
    """Parses unions, intersections and differences of sets."""
    node = self.ratio()
    while operator := self.accept(*vocabulary.SET_OPERATORS):
      node = Node(vocabulary.SET_OPERATORS[operator], (node, self.ratio()))
    return node

  def ratio(self) -> Node:
    """Parses a : b, and the infix commands `\\over` and `\\choose`."""
    parts = [self.sum()]
    while self._has_ratios and self.accept(':'):
      parts.append(self.sum())
    node = parts[0] if len(parts) == 1 else Node('ratio', tuple(parts))
    if self.accept('\\over'):
      return Node('quotient', (node, self.ratio()))
    if self.accept('\\choose'):
      return Node('call', (node, self.ratio()), 'binom')
    return node

  def sum(self) -> Node:
    """Parses a sum of terms with signs."""
    terms: list[Node] = []
    while (sign := self.accept('+', '-', '\\pm', '\\mp')) or not terms:
      term = self.term()
      if sign in ('\\pm', '\\mp'):
        terms = [Node('plus_minus', (ast.make_sum(terms), term), sign)]
      else:
        terms.append(Node('negative', (term,)) if sign == '-' else term)
    return ast.make_sum(terms)

  def term(self) -> Node:
    """Parses a product or quotient of factors, also without a multiplication sign."""
    node = self.factor()
    while True:
      if self.accept('*', '\\cdot', '\\times', '\\ast'):
        node = Node('product', (node, self.signed_factor()))
      elif self.accept('/', '\\div'):
        node = Node('quotient', (node, self.signed_factor()))
      elif node.kind == 'symbol' and self.peek().text == '(':
        # x(x + 1) and f(3) look alike and are treated alike.
        node = Node('product', (node, self.factor()), 'applied')
      elif self.peek().kind == 'number' and ast.is_quantity(node):
        node = ast.compound(node, self.term())
      elif self.peek().text == '(':
        node = _juxtaposed(node, self.factor(), in_brackets=True)
      elif self._starts_factor():
        node = _juxtaposed(node, self.factor())
      else:
        return node

  def signed_factor(self) -> Node:
    """Parses a factor with an optional sign."""
    sign = self.accept('+', '-')
    return ast.with_sign(sign, self.factor())

  def factor(self) -> Node:
    """Parses an atom with its powers, factorials and percent signs."""
    node = self.atom()
    while True:
      if self.accept('^'):
        node = self._power(node)
      elif self.accept('!'):
        node = Node('factorial', (node,))
      elif self.accept('\\%'):
        node = Node('percent', (node,))
      elif node.kind == 'number' and self.accept("'"):
        name = 'double prime' if self.accept("'") else 'prime'
        node = Node('product', (node, Node('text', (), name)))
      elif self.peek().text == '_' and node.kind == 'number':
        self.next()
        node = ast.in_base(node, self.argument())
      else:
        return node

  def _power(self, base: Node) -> Node:
    """Parses an exponent, a degree sign or a transposition."""
    if self.accept('\\circ'):
      temperature_scale = vocabulary.TEMPERATURES.get(
        self.peek().text.strip().lower()
      )
      if not temperature_scale:
        return Node('degree', (base,))
      self.next()
      return Node('product', (base, Node('text', (), temperature_scale)))
    if base.kind == 'matrix' and self.accept('T', '\\top'):
      return ast.transpose(base)
    sign = self.accept('+', '-')
    return Node('power', (base, ast.with_sign(sign, self.argument(whole=True))))

  def _starts_factor(self) -> bool:
    token = self.peek()
    if token.kind in ('number', 'mixed', 'letter', 'text'):
      return True
    if token.kind == 'command':
      return token.text in _FACTORS
    return token.text in ('(', '{', '\\{') or (
      token.text == '|' and not self._open_bars
    )

  # Atoms.

  def atom(self) -> Node:
    """Parses a number, a symbol, a text, a command or brackets."""
    token = self.next()
    match token.kind:
      case 'number':
        return ast.number(ast.parse_decimal(token.text))
      case 'mixed':
        whole, top, bottom = map(int, re.findall(r'\d+', token.text))
        return ast.number(whole + ast.checked_fraction(top, bottom))
      case 'clock':
        return clock.time_of_day(token.text)
      case 'letter' if token.text in 'ACP' and self.peek().text in ('_', '^'):
        return self._combinations(token.text) or self._symbol(token.text)
      case 'letter':
        return self._symbol(token.text)
      case 'text':
        words = [token.text]
        while self.peek().kind == 'text':
          words.append(self.next().text)
        return Node('text', (), ' '.join(words))
      case 'command':
        return self._command(token.text)
    return self.bracketed(token.text)

  def _symbol(self, name: str) -> Node:
    """Parses subscripts and primes of a name."""
    while True:
      if self.accept('_'):
        name = f'{name}_{self.argument_text()}'
      elif self.accept("'"):
        name = f"{name}'"
      elif self.peek().text == '^' and self.peek(1).text == '\\prime':
        self._position += 2
        name = f"{name}'"
      else:
        return Node('symbol', (), name)

  def _combinations(self, name: str) -> Node | None:
    """Parses a number of combinations C_5^2, or permutations A_5^2, P_5^2."""
    start, tokens = self._position, list(self._tokens)
    first_script = self.next().text
    first_argument = self.argument(whole=True)
    if self.accept({'_': '^', '^': '_'}[first_script]):
      second_argument = self.argument(whole=True)
      total, chosen = first_argument, second_argument
      if first_script == '^':
        total, chosen = chosen, total
      if _is_number(total) and _is_number(chosen):
        if first_script == '^' and total.value < chosen.value:
          total, chosen = chosen, total
        if 1 < total.value >= chosen.value:
          return Node(
            'call', (total, chosen), 'binom' if name == 'C' else 'perm'
          )
      elif name == 'C' and not _is_number(total):
        return Node('call', (total, chosen), 'binom')
    self._position, self._tokens = start, tokens
    return None

  def _command(self, name: str) -> Node:
    """Parses a command and its arguments."""
    match name:
      case '\\based':
        digits, base = self.argument_text(), int(self.argument_text())
        return Node('based', (), (digits.upper(), base))
      case '\\frac':
        return Node('quotient', (self.argument(), self.argument()))
      case '\\sqrt':
        index = ast.number(2)
        if self.accept('['):
          index = self.sum()
          self.expect(']')
        return Node('root', (self.argument(whole=True), index))
      case '\\binom':
        return Node('call', (self.argument(), self.argument()), 'binom')
      case '\\infty':
        return Node('infinity')
      case '\\emptyset':
        return Node('set')
      case '\\$' | '\\#' | '\\euro':
        return Node('text', (), name)
      case '\\lfloor' | '\\lceil':
        inner = self.sum()
        self.expect(name.replace('l', 'r', 1))
        return Node('call', (inner,), name[2:])
      case '\\begin':
        return self.environment()
    if name in vocabulary.FUNCTIONS:
      return self._call(name)
    if name in vocabulary.DECORATIONS:
      return self._decorated(name)
    if name in vocabulary.SYMBOLS:
      return self._symbol(name)
    raise ParseError(f'unknown command {name}')

  def _decorated(self, name: str) -> Node:
    """Parses a decorated letter (bold, hat, overline) or a number set."""
    start = self._position
    text = self.argument_text()
    if name == '\\mathbb' and text == 'R':
      return Node('reals')
    if name in ('\\mathbf', '\\boldsymbol', '\\bm') and not text.isalpha():
      self._position = start
      return self.argument()
    return self._symbol(f'{name}{{{text}}}')

  def _call(self, name: str) -> Node:
    """Parses a function call with its power or base and its argument."""
    power, base = None, ()
    while sign := self.accept('^', '_'):
      if sign == '_':
        base = (self.argument(),)
      else:
        power = ast.with_sign(self.accept('-'), self.argument(whole=True))
    function = name[1:]
    if power is not None and ast.is_number(power, -1):
      function, power = f'arc{function}', None
    if name == '\\det' and self.peek().text == '\\begin':
      return ast.determinant(self.atom())
    if self.peek().text in ('(', '{', '[', '\\{', '|'):
      inner = self.factor() if self.peek().text == '|' else self.atom()
    else:
      inner = self._operand()
    if inner.kind == 'tuple' and len(inner.parts) == 1:
      (inner,) = inner.parts
    if function == 'det' and inner.kind == 'matrix':
      return ast.determinant(inner)
    if inner.kind in ('tuple', 'set', 'list') and function != 'det':
      call = Node('call', inner.parts, function)
    else:
      call = Node('call', (inner, *base), function)
    return call if power is None else Node('power', (call, power))

  def _operand(self) -> Node:
    """Parses the argument of a function without parentheses."""
    node = ast.with_sign(self.accept('-'), self.factor())
    while self._starts_factor() and self.peek().kind != 'text':
      if self.peek().text in vocabulary.FUNCTIONS or self.peek().text == '(':
        break
      node = ast.juxtaposed(node, self.factor())
    if self.accept('/'):
      node = Node('quotient', (node, self.factor()))
    return node

  def argument(self, *, whole: bool = False) -> Node:
    """Parses the argument of a command or power: a group or one token.

    Args:
      whole: whether adjacent digits are one token.
    """
    token = self.peek()
    is_digits = token.kind == 'number' and token.text.isdigit()
    if is_digits and not whole and len(token.text) > 1:
      self._tokens[self._position] = Token('number', token.text[1:])
      return ast.number(int(token.text[0]))
    if token.text == '{':
      self.next()
      return self.until('}', self.statements)
    return self.atom()


def _juxtaposed(left: Node, right: Node, *, in_brackets: bool = False) -> Node:
  """Returns the product of adjacent factors, or a time such as 5 p.m."""
  if in_brackets and left.kind == right.kind == 'number':
    return Node('product', (left, right))
  if right.kind == 'text' and (time := clock.with_am_pm(left, right.value)):
    return time
  return ast.juxtaposed(left, right)


def _is_number(node: Node) -> bool:
  return node.kind == 'number'
