# SPDX-License-Identifier: Apache-2.0
"""Makes data/: a few problems in every dataset schema of `covrl.data`.

  python tests/golden/make_data.py

The columns are those of published datasets; the contents are invented, no row is
copied. `suites/` holds evaluation suites, in files with their names.
"""

import json
import pathlib

import pyarrow
import pyarrow.parquet

OUTPUT = pathlib.Path(__file__).with_name('data')

DAPO = (
  'Solve the following math problem step by step. The last line of your '
  'response should be of the form Answer: $Answer (without quotes) where '
  '$Answer is the answer to the problem.\n\n{}\n\nRemember to put your answer '
  'on its own line after "Answer:".'
)

# Question, answer, and a worked solution.
SUMS = [
  (
    f'A gardener plants {a} rows of {b} tulips and then {c} more by the '
    'fence. How many tulips does she plant?',
    str(a * b + c),
    f'She plants {a} times {b}, that is {a * b}, and {c} more: {a * b + c}.',
  )
  for a, b, c in [(3, 4, 5), (6, 7, 2), (8, 5, 9), (12, 11, 1), (9, 9, 9)]
]
FRACTIONS = [
  (
    f'What share of a circle is left when $\\frac{{{a}}}{{{b}}}$ of it has '
    'been painted?',
    f'\\frac{{{b - a}}}{{{b}}}',
    f'Of $b = {b}$ equal parts {b - a} are left: '
    f'\\boxed{{\\frac{{{b - a}}}{{{b}}}}}.',
  )
  for a, b in [(1, 3), (2, 5), (3, 7), (4, 9), (5, 8)]
]
COUNTS = [
  (
    f'How many positive divisors does ${n}$ have, counted with $1$ and itself?',
    sum(n % d == 0 for d in range(1, n + 1)),
  )
  for n in (12, 28, 60, 97, 100)
]


def write_jsonl(name, rows):
  """Writes rows as JSON lines."""
  path = OUTPUT / f'{name}.jsonl'
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(
    ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
  )


def write_parquet(name, rows):
  """Writes rows as a Parquet file."""
  table = pyarrow.Table.from_pylist(rows)
  pyarrow.parquet.write_table(table, OUTPUT / f'{name}.parquet')


def verl_row(data_source, question, answer, index, *, ability='math'):
  """Returns a row in verl's schema."""
  return {
    'data_source': data_source,
    'prompt': [{'role': 'user', 'content': question}],
    'ability': ability,
    'reward_model': {'style': 'rule', 'ground_truth': answer},
    'extra_info': {'index': index, 'split': 'train'},
  }


def make_math_files():
  """Writes the files of math problems."""
  write_jsonl('plain', [{'question': q, 'answer': a} for q, a, _ in SUMS])
  write_jsonl(
    'math',
    [
      {'problem': q, 'level': 'Level 2', 'type': 'Prealgebra', 'solution': s}
      for q, _, s in FRACTIONS
    ],
  )
  rows = [verl_row('gardens', q, a, n) for n, (q, a, _) in enumerate(SUMS)]
  for index, row in enumerate(rows):
    row['extra_info']['pass_rate'] = index / 4
  write_parquet('verl', rows)
  write_parquet(
    'dapo_math_17k',
    [
      verl_row('math_dapo', DAPO.format(q), str(a), n)
      for n, (q, a) in enumerate([*COUNTS, COUNTS[0]])
    ],
  )
  write_jsonl(
    'trl',
    [
      {'prompt': [{'role': 'user', 'content': q}], 'solution': a}
      for q, a, _ in FRACTIONS
    ],
  )


def make_code_files():
  """Writes the files of programming problems."""
  sums = json.dumps(
    {'inputs': ['1 2\n', '30 12\n'], 'outputs': ['3\n', '42\n']}
  )
  calls = {
    'fn_name': 'halves',
    'inputs': [[[2, 4]], [[10]]],
    'outputs': [[[1, 2]], [[5]]],
  }
  write_parquet(
    'eurus_2_rl_code',
    [
      verl_row(
        'codecontests',
        'Read two whole numbers from one line and print their sum. Write '
        'Python code in a block that begins with ```python.',
        sums,
        0,
        ability='code',
      ),
      verl_row(
        'taco',
        'Write a function halves(numbers) that gives half of each even number '
        'of a list.',
        json.dumps(calls),
        1,
        ability='code',
      ),
    ],
  )
  write_jsonl(
    'kodcode',
    [
      {
        'style': 'instruct',
        'subset': 'Prefill',
        'question_id': 'Prefill_1_I',
        'question': 'Write a function that says whether a word reads the same '
        'backwards.',
        'solution': 'def reads_back(word):\n  return word == word[::-1]\n',
        'test': 'from solution import reads_back\n\n'
        "def test_true():\n  assert reads_back('level')\n\n"
        "def test_false():\n  assert not reads_back('slope')\n",
        'test_info': [
          {
            'function_declaration': 'def reads_back(word):',
            'function_name': 'reads_back',
            'parameter_list': '(word)',
            'docstring': 'Whether a word reads the same backwards.',
          }
        ],
        'gpt_pass_percentage': 0.9,
      }
    ],
  )


def make_suites():
  """Writes the evaluation suites."""
  write_jsonl(
    'suites/math500',
    [
      {
        'problem': q.replace('circle', 'square'),
        'solution': s,
        'answer': a,
        'subject': 'Prealgebra',
        'level': 2,
        'unique_id': f'test/prealgebra/{n}.json',
      }
      for n, (q, a, s) in enumerate(FRACTIONS)
    ],
  )
  for year in (24, 25):
    write_jsonl(
      f'suites/aime{year}',
      [
        {
          'id': n,
          'problem': f'Let $N = {year} \\cdot {n}$. Find $N + 1$.',
          'answer': year * n + 1,
          'year': f'20{year}',
        }
        for n in range(1, 4)
      ],
    )
  write_jsonl(
    'suites/amc',
    [
      {
        'id': n,
        'problem': f'What is the perimeter of a square of side ${n}$?',
        'answer': float(4 * n),
        'url': f'https://example.org/2023_AMC_12A_Problems/Problem_{n}',
      }
      for n in range(1, 4)
    ],
  )
  write_jsonl(
    'suites/omni_math',
    [
      {
        'domain': ['Mathematics -> Number Theory'],
        'difficulty': 3.5,
        'problem': q.replace('positive divisors', 'divisors above $1$'),
        'solution': f'There are {a - 1}.',
        'answer': str(a - 1),
        'source': 'invented',
      }
      for q, a in COUNTS
    ],
  )
  write_jsonl(
    'suites/olympiadbench',
    [
      {
        'id': n,
        'question': f'Solve $x^2 = {n * n}$ for all real $x$.',
        'solution': ['Both signs do.'],
        'final_answer': [f'${n}$', f'$-{n}$'],
        'context': None,
        'is_multiple_answer': True,
        'unit': None,
        'answer_type': 'Numerical',
        'subject': 'Math',
        'language': 'English',
      }
      for n in (2, 3)
    ],
  )
  write_jsonl(
    'suites/minerva',
    [
      {
        'problem': f'A wave has frequency {f} Hz. What is its period in s?',
        'solution': f'The period is \\boxed{{{1 / f}}} seconds.',
        'type': 'Introduction to Astronomy (8.282J Spring 2006)',
        'idx': n,
      }
      for n, f in enumerate((2, 4, 8))
    ],
  )
  write_jsonl(
    'suites/gsm8k',
    [
      {
        'question': f'A rose has {n:,} petals. How many have {a} roses?',
        'answer': f'{a} times {n:,} is {n * int(a):,}.\n#### {n * int(a):,}',
      }
      for n, (_, a, _) in enumerate(SUMS, start=998)
    ],
  )


if __name__ == '__main__':
  OUTPUT.mkdir(exist_ok=True)
  make_math_files()
  make_code_files()
  make_suites()
