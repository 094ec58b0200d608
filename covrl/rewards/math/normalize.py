# SPDX-License-Identifier: Apache-2.0
"""Normalization of the typography of answers, without changing their meaning.

`normalize_tex` reduces TeX to few commands; `without_spaces` gives a form that can
be compared as text.
"""

from __future__ import annotations

import re
import unicodedata

from covrl.rewards.math import vocabulary
from covrl.rewards.math.number_bases import mark_bases

_SUPERSCRIPTS = str.maketrans('⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ', '0123456789+-n')
_SUBSCRIPTS = str.maketrans('₀₁₂₃₄₅₆₇₈₉', '0123456789')
# In the order of their code points, which begin at that of α.
_GREEK = """
alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron
pi rho sigmaf sigma tau upsilon phi chi psi omega
"""
_SYMBOLS = {
  **{'−': '-', '–': '-', '—': '-', '‐': '-', '‑': '-', '⁄': '/', '∕': '/'},
  **{'×': r'\times ', '÷': r'\div ', '·': r'\cdot ', '⋅': r'\cdot '},
  **{'∙': r'\cdot ', '∗': '*', '√': r'\sqrt ', '∞': r'\infty '},
  **{'≤': r'\le ', '≥': r'\ge ', '≠': r'\ne ', '≈': r'\approx '},
  **{'±': r'\pm ', '∓': r'\mp ', '°': r'^\circ ', '∪': r'\cup '},
  **{'∩': r'\cap ', '∈': r'\in ', '∅': r'\emptyset ', 'ℝ': r'\mathbb{R}'},
  **{'ℤ': r'\mathbb{Z}', 'ℚ': r'\mathbb{Q}', 'ℕ': r'\mathbb{N}'},
  **{'ℂ': r'\mathbb{C}', '∖': r'\setminus ', '…': r'\ldots ', '⋯': r'\ldots '},
  **{'⟨': '(', '⟩': ')', '’': "'", '′': "'", '‘': "'", '∠': r'\angle '},
  **{'△': r'\triangle ', '“': '', '”': '', '"': '', '→': r'\to '},
  **{'″': "''", '≡': r'\equiv ', '∣': '|', '∶': ':', '，': ',', '、': ', '},
  **{'；': ';', '。': '.', '≅': r'\cong ', '∼': r'\sim ', '△': r'\triangle '},
  **{'ℓ': r'\ell ', 'Ω': 'Ω', 'µ': 'μ', '∧': r'\wedge ', '∨': r'\vee '},
  **{'⩽': r'\le ', '⩾': r'\ge ', '≦': r'\le ', '≧': r'\ge '},
  # Invisible times, separator and plus.
  **{'\u2062': r'\cdot ', '\u2063': ',', '\u2064': '+'},
  **{'⌊': r'\lfloor ', '⌋': r'\rfloor ', '⌈': r'\lceil ', '⌉': r'\rceil '},
  **{
    chr(ord('α') + index): f'\\{name} '
    for index, name in enumerate(_GREEK.split())
  },
}
_UNICODE = re.compile(f'[{re.escape("".join(_SYMBOLS))}]')

# Applied in this order. A command must not be followed by a letter; \b does not
# express that, as in \sqrt_2.
_REWRITES = [
  (re.compile(pattern), replacement)
  for pattern, replacement in (
    # Optional arguments of row ends, and math delimiters, are dropped.
    (r'\\\\\s*\[[^\]]*\]', r'\\\\ '),
    (r'(?<!\\)\\[()\[\]]', ' '),
    (r'(?<!\\)\$', ' '),
    # A space or a comma within a number.
    (r'(?<=\d)(?:\{,\}|\\,|\\!|\\:|\\;|,\\!)(?=\d{3}(?!\d))', ''),
    (r'\{,\}', ','),
    (r'\{:\}', ':'),
    (r'(?<=\d)\\[!,](?=:)|(?<=:)\\[!,](?=\d)', ''),
    # Dots at the end of a number or a list.
    (r'\.{3,}', r'\\ldots '),
    (r'(?<![a-zA-Z\\}])\{\s*\}', ' '),
    # Primes, as of minutes and feet.
    (r'\^\s*\{\s*\\prime\s*\\prime\s*\}|\^\s*\{\s*\'\'\s*\}', "''"),
    (r'\^\s*\{?\s*\\prime(?![a-zA-Z])\s*\}?', "'"),
    # Exponents of ten, and units of siunitx.
    (
      r'(?<=[\d.])\s*\\(?:text|mathrm|mathsf|operatorname)\s*\{\s*(?:E|e(?=\s*(?:[-+\d]|\}\s*\{)))'
      r'\s*(?:\}\s*\{?\s*([-+]?\s*\d+)|([-+]?\s*\d+))\s*\}?',
      r'\\cdot 10^{\1\2}',
    ),
    # Environments of displays.
    (r'\\(?:begin|end)\s*\{(?:equation|math|displaymath)\*?\}', ' '),
    (r'\\(mathbb|mathbf)\s*([A-Z])(?![a-zA-Z])', r'\\\1{\2}'),
    (r'\\([ZNQRC])(?![a-zA-Z])', r'\\mathbb{\1}'),
    (
      r'(?<=\\in)\s*(?:\\mathbf\s*\{([ZNQRC])\}|([ZNQRC])(?![a-zA-Z_(]))',
      r'\\mathbb{\1\2}',
    ),
    (
      r'\(\s*([a-z](?:\s*,\s*[a-z])*\s*\\in\s*\\mathbb\s*\{[A-Z]\}'
      r'(?:\^\s*[+*]|[_^]\s*\{[^{}]*\})?)\s*\)',
      r', \1',
    ),
    (
      r'(?<![a-zA-Z])([a-z])\s*=\s*0\s*,\s*\\pm\s*1\s*(?:,\s*\\pm\s*[23]\s*)*,'
      r'\s*(?:\\[lc]?dots[a-z]?|…)',
      r'\1\\in\\mathbb{Z}',
    ),
    (
      r'\\mathbb\{(?:Z(?=\}\s*(?:\^\s*[+*]|[_^]\s*\{[^{}<\-\d]*[+>*][^{}]*\}|_\s*\+))|N)\}'
      r'\s*(?:\^\s*[+*]|[_^]\s*\{[^{}]*\}|_\s*[+\d])',
      r'\\mathbb{N}',
    ),
    (
      r'\(\s*([a-z])\s*(\\(?:text|mathrm)\s*\{\s*(?:is|are|an?|any|integer)[^{}]*\})\s*\)',
      r', \1\2',
    ),
    # Positive and non-negative real numbers.
    (
      r'\\mathbb\{R\}\s*(?:[_^]\s*\{\s*\+\s*\}|[_^]\s*\+|_\s*\{\s*>\s*0\s*\})',
      r'(0, \\infty)',
    ),
    (
      r'\\mathbb\{R\}\s*_\s*\{\s*(?:\\geq?(?:slant)?\s*|>=\s*)0\s*\}',
      r'[0, \\infty)',
    ),
    # Ordinal numbers.
    (
      r'(?<=\d)\s*\^\s*(?:\{\s*(?:\\(?:text|mathrm)\s*\{\s*)?(?:st|nd|rd|th)\s*\}?\s*\}'
      r'|\\(?:text|mathrm)\s*\{\s*(?:st|nd|rd|th)\s*\})',
      '',
    ),
    (r'(?<=\d)(?:\\text\s*\{\s*(?:st|nd|rd|th)\s*\}|th(?![a-zA-Z]))', ''),
    (r'\\complement(?=\s*[_^])', 'C'),
    (r'\{\s*\\dot\s*\{?\s*(\d)\s*\}?\s*\}', r'\\dot{\1}'),
    # Combinations as _5 C_2.
    (
      r'(?<![\w)}\]\s])\s*[_^]\s*(?:\{\s*(\w+)\s*\}|(\w))\s*'
      r'(?:C|\\(?:text|mathrm)\{\s*C\s*\})\s*_\s*(?:\{\s*(\w+)\s*\}|(\w))',
      r'\\binom{\1\2}{\3\4}',
    ),
    (
      r'(?<![\w)}\]\s])\s*[_^]\s*(?:\{\s*(\w+)\s*\}|(\w))\s*'
      r'(?:P|\\(?:text|mathrm)\{\s*P\s*\})\s*_\s*(?:\{\s*(\w+)\s*\}|(\w))',
      r'P_{\1\2}^{\3\4}',
    ),
    (
      r'\\(?:text|mathrm|mathbf|operatorname)\s*\{\s*([ACP])\s*\}(?=\s*[_^])',
      r' \1',
    ),
    (r'\\(?:left|right|middle)(?![a-zA-Z])\s*\.', ' '),
    (r'\\(?:left|right|middle)(?![a-zA-Z])', ' '),
    (r'\\[bB]igg?[lrm]?(?![a-zA-Z])', ' '),
    (r'(?<!\\)\\[,;:! ]|(?<!\\)~|&nbsp;', ' '),
    (r'\\(?:q?quad|thinspace|enspace|displaystyle|textstyle)(?![a-zA-Z])', ' '),
    (
      r'\\(?:tiny|small|normalsize|large|Large|LARGE|huge|Huge)(?![a-zA-Z])',
      ' ',
    ),
    (r'\\(?:scriptstyle|limits|nolimits|rm|bf|it|sf)(?![a-zA-Z])', ' '),
    (r'\\(?:[hv]space|phantom|label|tag|color)\*?\s*\{[^{}]*\}', ' '),
    (r'\\textcolor\s*\{[^{}]*\}', ' '),
    (r'\\(?:boxed|fbox|underline|ensuremath)(?![a-zA-Z])', ' '),
    (r'\\[dtc]frac(?![a-zA-Z])', r'\\frac '),
    (r'\\[dt]binom(?![a-zA-Z])', r'\\binom '),
    (r'\\(?:le|leq|leqslant|leqq)(?![a-zA-Z])', r'\\le '),
    (r'\\(?:ge|geq|geqslant|geqq)(?![a-zA-Z])', r'\\ge '),
    (r'\\(?:ne|neq)(?![a-zA-Z])|\\not\s*=', r'\\ne '),
    (r'<=|=<', r'\\le '),
    (r'>=', r'\\ge '),
    (r'\s!=', r'\\ne '),
    (r'\\(?:lt|textless)(?![a-zA-Z])', '<'),
    (r'\\(?:gt|textgreater)(?![a-zA-Z])', '>'),
    (r'\\(?:lvert|rvert|vert|mid)(?![a-zA-Z])', '|'),
    (r'\\(?:langle|lparen)(?![a-zA-Z])', '('),
    (r'\\(?:rangle|rparen)(?![a-zA-Z])', ')'),
    (r'\\lbrace(?![a-zA-Z])', r'\\{'),
    (r'\\rbrace(?![a-zA-Z])', r'\\}'),
    (r'\\lbrack(?![a-zA-Z])', '['),
    (r'\\rbrack(?![a-zA-Z])', ']'),
    (r'\\colon(?![a-zA-Z])', ':'),
    (r'\\(?:varnothing|O)(?![a-zA-Z])', r'\\emptyset '),
    (r'\\(?:backslash|smallsetminus)(?![a-zA-Z])', r'\\setminus '),
    (r'\\(?:bigcup)(?![a-zA-Z])', r'\\cup '),
    (r'\\(?:dots|dotsc|cdots|dotso|dotsb)(?![a-zA-Z])', r'\\ldots '),
    (r'\\(?:lor|vee)(?![a-zA-Z])', r'\\text{or}'),
    (r'\\(?:land|wedge)(?![a-zA-Z])', r'\\text{and}'),
    (r'\\(?:degree|textdegree)(?![a-zA-Z])', r'^\\circ '),
    (
      r'\^\s*\{\s*\\circ\s*(?:\\(?:text|mathrm|rm)\s*\{?)?\s*([CF])\s*\}?\s*\}',
      r'^\\circ\\text{\1}',
    ),
    (r'\^\s*\{\s*\\circ\s*\}', r'^\\circ '),
    (r'\\text\s*\{\s*\(\s*mod(?:ulo)?\s*(\w+)\s*\)\s*\}', r'\\pmod{\1}'),
    (
      r'\(\s*(?:\\[bp]?mod|\\(?:text|mathrm|operatorname)\s*\{\s*mod\s*\}|mod)'
      r'\s*\{?\s*([^(){}]*?)\s*\}?\s*\)',
      r'\\pmod{\1}',
    ),
    (
      r'\\text\s*\{\s*\(?\s*mod(?:ulo)?\s*\}?\s*(\w+)\s*\)?\s*\}?\s*\)?',
      r'\\pmod{\1}',
    ),
    (r'\\(?:bmod|mod|pmod)(?![a-zA-Z])', r'\\pmod '),
    (r'\\(?:imath|jmath)(?![a-zA-Z])', 'i'),
    (r'\\(?:var)(epsilon|theta|phi|rho|sigma|pi|kappa)(?![a-zA-Z])', r'\\\1 '),
    (r'\\(?:pounds|textsterling)(?![a-zA-Z])', '£'),
    (r'\\(?:math|text)dollar(?![a-zA-Z])', r'\\$'),
    (r'\\(?:text)?euro(?![a-zA-Z])', '€'),
    (r'\\(?:text)?yen(?![a-zA-Z])', '¥'),
    (r'\\(?:text)?cent(?![a-zA-Z])', '¢'),
    (r'\(\s*\\approx([^()]*)\)', r'\\approx\1'),
    (
      r'\\text\s*\{\s*\(\s*(?:approximately|approx\.?|about|roughly)\s*\}([^()]*)\)',
      r'\\approx\1',
    ),
    (
      r'\\text\s*\{\s*,?\s*(?:or )?(?:approximately|approx\.?|about|roughly)\s*\}',
      r'\\approx ',
    ),
    # A unit of one letter.
    (
      r'(?<=\d)(\s*)\\(?:mathrm|mathsf)\s*\{\s*([hsmgNJWVKL])\s*\}',
      r'\1\\text{\2}',
    ),
    (r'(?<!\\)%', r'\\%'),
    # Single letters in another font are symbols, several are a word.
    (
      r'\\(?:mathrm|mathsf|mathtt|mathit|mathnormal)\s*\{\s*([a-zA-Z])\s*\}',
      r' \1 ',
    ),
    (r'\\(?:mathrm|mathsf|mathtt|mathit|mathnormal)\s*(?=\{)', r'\\text'),
    (r'\\(?:textbf|textit|textrm|textnormal|textup)\s*(?=\{)', r'\\text'),
    (r'\\(?:textsf|texttt|emph|mbox|hbox)\s*(?=\{)', r'\\text'),
    (r'\\text\s+(?=\{)', r'\\text'),
    (
      r'\\text\{([^{}]*?)\^?\s*\\circ\s*([^{}]*)\}',
      r'\\text{\1}^\\circ \\text{\2}',
    ),
    # A text without a word is not a text.
    (r'\\text\{([^a-zA-Z{}]*)\}', r' \1 '),
    # A number at the start of a text, as in \text{5 cm}, is moved out of it.
    (r'\\text\{\s*([-+\d.,/:]*\d)\s*([^{}]*)\}', r' \1\\text{\2}'),
    (
      r'(?<=\d)\s*(?:\\text\{\s*)?([aApP])\s?\.?\s?[mM](?![a-zA-Z])\.?\s*\}?',
      r'\\text{\1m}',
    ),
    (r'(?<=\d)\s*h\s*(\d+)\s*m(?:in)?(?![a-zA-Z])', r'\\text{h}\1\\text{min}'),
    (r'(?<=\d)\s*in\.?(?=\s*(?:$|\^|,))', r'\\text{in}'),
    (r'\b(US|USD|Rs\.?)\s*(?=\\\$|\d)', r'\\text{\1}'),
    (r'\\text\{US\}\s*\\\$', r'\\$'),
    (r'(?<!\d)\\\$\s*-\s*(?=\d)', r'-\\$'),
    (r'\\mu\s*\\text\{\s*', r'\\text{μ'),
    (r'或者?', r'\\text{or}'),
    (r'[和且]', r'\\text{and}'),
    (
      r'\\text\{([^{}]*)\\text\{(or|and)\}([^{}]*)\}',
      r'\\text{\1}\\text{\2}\\text{\3}',
    ),
  )
]
# A quantity of siunitx, up to its unit.
_SIUNITX_QUANTITY = re.compile(r'\\(?:SI|qty)\s*\{([^{}]*)\}\s*(?=\{)')
# A font command whose argument has at most one level of braces.
_FONT = re.compile(
  r'\\(?:mathrm|text|textrm|rm|mbox|unit|si|operatorname)\s*'
  r'\{((?:[^{}]|\{[^{}]*\})*)\}'
)
# Units in TeX, as plain text.
_UNIT_REWRITES = [
  (re.compile(pattern), replacement)
  for pattern, replacement in (
    (r'\\(?:cdot|times|ast|bullet)(?![a-zA-Z])', '*'),
    (r'\\[,;:! ]|\\quad(?![a-zA-Z])|~', ' '),
    (r'\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}', r'\1/\2'),
    (r'\\mu(?![a-zA-Z])\s*', 'μ'),
    (r'\\(?:Omega|ohm)(?![a-zA-Z])', 'Ω'),
    (
      r'\\(per|meter|metre|kilo|centi|milli|second|hour|gram|newton|joule|watt|square'
      r'|cubic|squared|cubed|degree|celsius|minute|day|liter|litre|volt|ampere|mole'
      r'|kelvin|pascal|hertz|percent)(?![a-zA-Z])',
      r' \1',
    ),
    (r'\b(kilo|centi|milli) ', r'\1'),
    (r'\^\s*\{\s*([-+]?\d+)\s*\}', r'^\1'),
    (r'\{\s*\}', ''),
  )
]
# A number followed by several plain words, such as 18 dollars per day.
_COUNTED_NOUN = re.compile(
  r'([-+]?\s*(?:\\?\$\s*)?\d[\d,]*(?:\.\d+)?)\s+([a-zA-Z]{2,}(?:[ /-]+[a-zA-Z]+){1,6})[.!]?'
)
# The quantifier of a free variable or constant after a formula; that of integers
# makes a family, see `families`.
_KIND_OF_NUMBER = (
  r'(?:\s*(?:real|complex|arbitrary|constants?|numbers?|values?|of))*'
)
_QUANTIFIER = re.compile(
  r'[\s,;]*(?:\\text\s*\{[\s,]*)?(?:\\forall|\bfor (?:all|any|every|each)|\bwhere)'
  rf'{_KIND_OF_NUMBER}\s*\}}?\s*[a-zA-Z]?(?:\s*\\in\s*\\mathbb\{{[RC]\}})?'
  rf'(?:\s*(?:\\text\s*\{{)?\s*is (?:an?|any){_KIND_OF_NUMBER})?\s*\}}?\s*$'
  r'|\s*,\s*[a-zA-Z]\s*\\in\s*\\mathbb\{[RC]\}\s*$'
)
_ALIGNED = re.compile(
  r'\\(?:begin|end)\s*\{(?:align(?:ed|at)?|gather(?:ed)?|split|multline)\*?\}'
)
_SPACES = re.compile(r'\s+')
_TRIMMED_CHARACTERS = ' \t\n.,;:'
# Spaces that do not separate words or numbers.
_INSIGNIFICANT_SPACES = re.compile(r'(?<![a-zA-Z0-9])\s+|\s+(?![a-zA-Z0-9])')


def normalize_tex(text: str) -> str:
  r"""Returns TeX in a uniform spelling, without spacing, sizes and math delimiters.

  >>> normalize_tex(r'$\left( \dfrac{1}{2},\; 3 \right]$.')
  '( \\frac {1}{2}, 3 ]'
  """
  text = _replace_unicode(_SPACES.sub(' ', text).strip().strip('*`').strip())
  if (
    counted_noun := _COUNTED_NOUN.fullmatch(text)
  ) and vocabulary.COMMAND_WORDS.keys().isdisjoint(counted_noun[2].split()):
    text = f'{counted_noun[1]}\\text{{ {counted_noun[2]}}}'
  text = _SIUNITX_QUANTITY.sub(r'\1\\text', text)
  text = mark_bases(_join_aligned_lines(_FONT.sub(_flatten_unit, text)))
  for pattern, replacement in _REWRITES:
    text = pattern.sub(replacement, text)
  text = _QUANTIFIER.sub('', _SPACES.sub(' ', text).strip()) or text
  # A trailing full stop or row end is not part of the answer.
  text = text.rstrip(_TRIMMED_CHARACTERS)
  while text.endswith('\\\\'):
    text = text[:-2].rstrip().rstrip(_TRIMMED_CHARACTERS)
  return text.lstrip(_TRIMMED_CHARACTERS.replace('.', ''))


def without_spaces(normalized: str) -> str:
  r"""Removes spaces that do not matter from normalized TeX.

  >>> without_spaces(r'( \frac {1}{2}, 3 ]')
  '(\\frac{1}{2},3]'
  """
  return _INSIGNIFICANT_SPACES.sub('', normalized)


def _replace_unicode(text: str) -> str:
  """Replaces non-ASCII characters by TeX, or by compatibility forms."""
  text = re.sub(r'(?<=\d)"|(?<=\d\')\'?"', "''", text)
  if text.isascii():
    return text.replace('"', '')
  text = re.sub('(\\d)\u0307', r'\\dot{\1}', text)
  text = re.sub('((?:\\d\u0305)+)', _overline, text)
  text = re.sub(
    '[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+',
    lambda m: f'^{{{m.group().translate(_SUPERSCRIPTS)}}}',
    text,
  )
  text = re.sub(
    '[₀-₉]+', lambda m: f'_{{{m.group().translate(_SUBSCRIPTS)}}}', text
  )
  text = re.sub('[¼-¾⅐-⅞]', _unicode_fraction, text)
  text = _UNICODE.sub(lambda match: _SYMBOLS[match.group()], text)
  text = unicodedata.normalize('NFKC', text)
  return _UNICODE.sub(lambda match: _SYMBOLS[match.group()], text)


def _overline(match: re.Match[str]) -> str:
  return f'\\overline{{{match.group().replace(chr(0x305), "")}}}'


def _flatten_unit(match: re.Match[str]) -> str:
  """Returns TeX within a font command as plain text, if it is a unit."""
  text = match.group(1)
  if '\\' not in text and '{' not in text:
    return match.group()
  for pattern, replacement in _UNIT_REWRITES:
    text = pattern.sub(replacement, text)
  if '\\' in text or '{' in text:
    return match.group()
  return f'\\text{{{text}}}'


def _join_aligned_lines(text: str) -> str:
  """Removes an environment of aligned lines; its lines become a list."""
  lines = _ALIGNED.sub(' ', text)
  if lines == text:
    return text
  lines = re.sub(r'(?<!\\)&', ' ', lines)
  return re.sub(r'\\\\(?:\[[^\]]*\])?(?=\s*\S)', ', ', lines).replace(
    '\\\\', ' '
  )


def _unicode_fraction(match: re.Match[str]) -> str:
  """Returns the TeX of a fraction character such as ½."""
  top, _, bottom = unicodedata.normalize('NFKC', match.group()).partition('⁄')
  return f'\\frac{{{top}}}{{{bottom}}}'
