# SPDX-License-Identifier: Apache-2.0
"""Memory, operations and traffic of recipes on TPU slices, by XLA's compiler.

  python tests/benchmarks/pods.py [--only=TEXT] [--json=DIRECTORY]

Every line runs one `covrl compile --json`, which takes minutes and is printed
before its figures. With `--json` the outputs are kept and reused.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
STEP = '--programs=train_step'
FOUR = '--config.train.micro_batches=4'
OF_64 = ('--config.mesh.data=4', '--config.mesh.fsdp=16', FOUR)

# Name, recipe, topology, options arguments.
RECIPES = [
  ('0.5B', 'qwen2_5_0_5b_gsm8k', 'v5e:2x4', ()),
  (
    '7B',
    'qwen2_5_7b_kl_cov',
    'v6e:8x8',
    ('--config.mesh.data=2', FOUR, '--config.train.remat=mlp'),
  ),
  ('7B, 32 chips', 'qwen2_5_7b_kl_cov', 'v5p:2x4x4', ()),
  ('7B, 64 chips', 'qwen2_5_7b_kl_cov', 'v5p:4x4x4', OF_64),
  ('32B', 'qwen2_5_32b_kl_cov', 'v5p:4x4x8', ()),
  (
    '32B, two slices',
    'qwen2_5_32b_kl_cov',
    'v5p:4x4x8',
    (
      '--num-slices=2',
      '--config.mesh.data=4',
      '--config.train.micro_batches=1',
    ),
  ),
  ('72B', 'qwen2_5_72b_kl_cov', 'v5p:8x8x8', ()),
]


def weak_scaling(data: int) -> tuple[str, ...]:
  """Arguments of the 7B step with 64 sequences per replica.

  Args:
    data: number of replicas.
  """
  return (
    STEP,
    FOUR,
    f'--config.mesh.data={data}',
    '--config.mesh.fsdp=16',
    f'--config.train.sequences_per_update={64 * data}',
    f'--config.rollout.prompts_per_iteration={64 * data}',
  )


SCALING = [
  ('weak scaling, 64 chips', 'qwen2_5_7b_kl_cov', 'v5p:4x4x4', weak_scaling(4)),
  (
    'weak scaling, 256 chips',
    'qwen2_5_7b_kl_cov',
    'v5p:4x8x8',
    weak_scaling(16),
  ),
  (
    'weak scaling, 1024 chips',
    'qwen2_5_7b_kl_cov',
    'v5p:8x8x16',
    weak_scaling(64),
  ),
]
OTHERS = [
  (
    'ten times the batch',
    'qwen2_5_7b_kl_cov',
    'v5p:4x4x4',
    (
      STEP,
      *OF_64,
      '--config.train.sequences_per_update=2560',
      '--config.rollout.prompts_per_iteration=320',
    ),
  ),
  (
    "selection by 'current'",
    'qwen2_5_7b_kl_cov',
    'v5p:4x4x4',
    (STEP, *OF_64, '--config.entropy.selection_source=current'),
  ),
]


def compiled(
  recipe: str,
  topology: str,
  options: tuple[str, ...],
  kept: pathlib.Path | None,
) -> dict[str, Any]:
  """Returns the output of `covrl compile --json`."""
  arguments = [
    'compile',
    f'--config=reasoning:{recipe}',
    f'--topology={topology}',
    *options,
  ]
  print('covrl', *arguments, flush=True)
  if kept is not None and kept.exists():
    return json.loads(kept.read_text())
  done = subprocess.run(
    [sys.executable, '-m', 'covrl.cli', *arguments, '--json'],
    cwd=ROOT,
    check=False,
    stdout=subprocess.PIPE,
    text=True,
  )
  output = done.stdout
  # Status 1 with an output: a program does not fit.
  if done.returncode and not output:
    done.check_returncode()
  if kept is not None:
    kept.write_text(output)
  return json.loads(output)


def row(name: str, output: dict[str, Any]) -> str:
  """A line of the table, from the output of `covrl compile --json`."""
  programs = output['programs']
  step = programs['train_step']
  full = max(programs, key=lambda each: programs[each]['hbm_bytes'])
  share = programs[full]['hbm_bytes'] / programs[full]['hbm_limit_bytes']
  cells = [
    name,
    f'{output["chips"]} × {output["topology"]}',
    f'{step["hbm_bytes"] / 2**30:.1f} GiB',
    f'{share:.0%} ({full})' + ('' if output['fits'] else ', does not fit'),
  ]
  if step['flops'] is None:
    return ' | '.join(cells)
  sent = {'ici': 0.0, 'dcn': 0.0}
  for each in step['collectives']:
    sent[each['network']] += each['bytes'] / 1e9
  cells += [
    f'{step["flops"]:.3g}',
    f'{step["flops"] / step["model_flops"]:.2f}',
    f'{sent["ici"]:.1f}' + (f' + {sent["dcn"]:.2f}' if sent['dcn'] else ''),
    f'{step["roofline_seconds"]:.1f} s, {step["bound"]}',
    f'{step["mfu_ceiling"]:.0%}',
  ]
  if 'decode' in programs:
    decode = programs['decode']
    if decode['bytes']:
      cells.append(f'{decode["bytes"] / decode["ideal_bytes"]:.2f}')
  return ' | '.join(cells)


def main() -> None:
  """Compiles all programs, or those whose name contains a text."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--only', default='')
  parser.add_argument('--json', type=pathlib.Path)
  given = parser.parse_args()
  lines = []
  for name, recipe, topology, options in [*RECIPES, *SCALING, *OTHERS]:
    if given.only not in name:
      continue
    kept = given.json and given.json / f'{name.replace(" ", "_")}.json'
    output = compiled(recipe, topology, options, kept)
    lines.append(row(name, output))
    print(lines[-1], flush=True)
    for each in output['programs']['train_step']['collectives']:
      if each['bytes'] > 1e8:
        print('   ', each)
  print()
  print(
    'recipe | chips | step, HBM per chip | fullest | step, FLOPs per chip | '
    "of the model's own | GB sent per chip | at least | MFU at most | "
    'decode traffic of the least'
  )
  print('\n'.join(lines))


if __name__ == '__main__':
  main()
