# SPDX-License-Identifier: Apache-2.0
"""Comparison of a run's greedy grades with those of its export in transformers.

  covrl convert runs/smollm DIRECTORY
  FOLDER/trl/bin/python tests/benchmarks/export_answers.py runs/smollm DIRECTORY

Answers every held-out problem of the last evaluation of `smollm:arithmetic` with
the exported model, greedily in float32, and prints for how many the grade (and,
where the run has kept it, the response) is the same. FOLDER is that of
`install_peers.sh`, whose environments have transformers and PyTorch.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pathlib
import re
from typing import Any

# Not installed where types are checked.
torch: Any = importlib.import_module('torch')
transformers: Any = importlib.import_module('transformers')


def main() -> None:
  """Prints the number of equal grades, and the problems that differ."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('run', type=pathlib.Path)
  parser.add_argument('export', type=pathlib.Path)
  parser.add_argument(
    '--length', type=int, default=4, help='tokens per response'
  )
  options = parser.parse_args()
  tokenizer = transformers.AutoTokenizer.from_pretrained(options.export)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    options.export, dtype=torch.float32
  )
  last = max((options.run / 'evaluation').glob('iteration_*.jsonl'))
  results = [json.loads(line) for line in last.read_text().splitlines()]
  equal = 0
  for result in results:
    ids = tokenizer.encode(result['prompt'], add_special_tokens=False)
    with torch.no_grad():
      generated = model.generate(
        torch.tensor([ids]), max_new_tokens=options.length, do_sample=False
      )
    response = tokenizer.decode(
      generated[0, len(ids) :], skip_special_tokens=True
    )
    is_equal = grade(result['prompt'], response) == result['greedy']
    is_equal &= result.get('response', response) == response
    equal += is_equal
    if not is_equal:
      print(f'{result["prompt"]!r}: {response!r}')
  print(f'{equal} of {len(results)} equal')


def grade(prompt: str, response: str) -> int:
  """1 if the last number of a response is the sum of the prompt's terms."""
  terms = re.findall(r'[+-]? ?\d+', prompt.splitlines()[1])
  expected = sum(int(term.replace(' ', '')) for term in terms)
  numbers = re.findall(r'-?\d+', response)
  return int(bool(numbers) and int(numbers[-1]) == expected)


if __name__ == '__main__':
  main()
