# SPDX-License-Identifier: Apache-2.0
"""Memory, operations and traffic of recipes on TPUs and GPUs, by XLA's compiler.

  python tests/benchmarks/pods.py [--only=TEXT] [--json=DIRECTORY]

Every line runs one `covrl compile --json`, which takes minutes and is printed
before its numbers. With `--json` the outputs are kept and reused. Lines on GPUs
need the environment of `make test-gpu-compile`: `.venv-gpu/bin/python`.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
STEP_ONLY = '--programs=train_step'
# Without the program that scores tokens: it needs far less memory than an update.
RUN_PROGRAMS = '--programs=train_step,prefill,decode'
WITH_CRITIC = '--programs=train_step,critic_step,prefill,decode'
FOUR_MICRO_BATCHES = '--config.train.micro_batches=4'
ALL_FSDP = ('--config.mesh.data=1', '--config.mesh.fsdp=8')
MESH_OF_64 = (
  '--config.mesh.data=4',
  '--config.mesh.fsdp=16',
  FOUR_MICRO_BATCHES,
)

# Name, recipe, topology and further arguments of `covrl compile`.
RECIPES = [
  ('0.5B, 8 chips', 'qwen2_5_0_5b_gsm8k', 'v5e:2x4', ()),
  (
    '7B, 64 v6e',
    'qwen2_5_7b_kl_cov',
    'v6e:8x8',
    ('--config.mesh.data=2', FOUR_MICRO_BATCHES, '--config.train.remat=mlp'),
  ),
  ('7B, 32 chips', 'qwen2_5_7b_kl_cov', 'v5p:2x4x4', ()),
  ('7B, 64 chips', 'qwen2_5_7b_kl_cov', 'v5p:4x4x4', MESH_OF_64),
  ('32B, 128 chips', 'qwen2_5_32b_kl_cov', 'v5p:4x4x8', ()),
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
  ('7B PPO, 32 chips', 'qwen2_5_7b_ppo', 'v5p:2x4x4', (WITH_CRITIC,)),
]


def options_7b(micro_batches: int, slots: int = 512) -> tuple[str, ...]:
  """Arguments of 7B with the published batch on eight GPUs."""
  return (
    *ALL_FSDP,
    f'--config.train.micro_batches={micro_batches}',
    f'--config.rollout.slots={slots}',
    '--config.rollout.tensor=1',
  )


GPUS = [
  (
    '0.5B, one H100',
    'qwen2_5_0_5b_gsm8k',
    'h100:1',
    ('--config.train.micro_batches=8',),
  ),
  ('0.5B, 8 H100', 'qwen2_5_0_5b_gsm8k', 'h100:8', ALL_FSDP),
  (
    '1.5B, one H100',
    'qwen2_5_0_5b_gsm8k',
    'h100:1',
    (
      '--config.pretrained=Qwen/Qwen2.5-1.5B',
      '--config.train.micro_batches=16',
    ),
  ),
  ('7B, 8 H100', 'qwen2_5_7b_kl_cov', 'h100:8', options_7b(32)),
  ('7B, 8 A100', 'qwen2_5_7b_kl_cov', 'a100:8', options_7b(32)),
  ('7B, 8 H200', 'qwen2_5_7b_kl_cov', 'h200:8', options_7b(16)),
  ('7B, 8 B200', 'qwen2_5_7b_kl_cov', 'b200:8', options_7b(16)),
  (
    '7B with adapters, one H100',
    'qwen2_5_7b_kl_cov',
    'h100:1',
    (
      '--config.lora.rank=16',
      '--config.train.micro_batches=256',
      '--config.rollout.prompts_per_iteration=64',
      '--config.rollout.slots=32',
      '--config.rollout.tensor=1',
    ),
  ),
  (
    '32B, 4 × 8 H100',
    'qwen2_5_32b_kl_cov',
    'h100:4x8',
    (
      '--config.mesh.data=1',
      '--config.mesh.fsdp=16',
      '--config.mesh.tensor=2',
      '--config.train.micro_batches=16',
      '--config.rollout.slots=512',
      '--config.rollout.tensor=8',
    ),
  ),
  (
    '7B PPO, 8 H100',
    'qwen2_5_7b_ppo',
    'h100:8',
    (*options_7b(32, slots=256), WITH_CRITIC),
  ),
]


def weak_scaling(data: int) -> tuple[str, ...]:
  """Arguments of the 7B step with 64 sequences per replica.

  Args:
    data: number of replicas.
  """
  return (
    STEP_ONLY,
    FOUR_MICRO_BATCHES,
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
VARIANTS = [
  (
    'ten times the batch, 8 H100',
    'qwen2_5_7b_kl_cov',
    'h100:8',
    (
      STEP_ONLY,
      *options_7b(32),
      '--config.train.sequences_per_update=2560',
      '--config.rollout.prompts_per_iteration=320',
    ),
  ),
  (
    'ten times the batch, 64 chips',
    'qwen2_5_7b_kl_cov',
    'v5p:4x4x4',
    (
      STEP_ONLY,
      *MESH_OF_64,
      '--config.train.sequences_per_update=2560',
      '--config.rollout.prompts_per_iteration=320',
    ),
  ),
  (
    "selection by 'current'",
    'qwen2_5_7b_kl_cov',
    'v5p:4x4x4',
    (STEP_ONLY, *MESH_OF_64, '--config.entropy.selection_source=current'),
  ),
]


def compile_report(
  recipe: str,
  topology: str,
  options: tuple[str, ...],
  json_file: pathlib.Path | None,
) -> dict[str, Any]:
  """Returns the output of `covrl compile --json`."""
  if not any(option.startswith('--programs=') for option in options):
    options = (*options, RUN_PROGRAMS)
  arguments = [
    'compile',
    f'--config=reasoning:{recipe}',
    f'--topology={topology}',
    *options,
  ]
  print('covrl', *arguments, flush=True)
  if json_file is not None and json_file.exists():
    return json.loads(json_file.read_text())
  process = subprocess.run(
    [sys.executable, '-m', 'covrl.cli', *arguments, '--json'],
    cwd=ROOT,
    check=False,
    stdout=subprocess.PIPE,
    text=True,
  )
  output = process.stdout
  # Status 1 with an output: a program does not fit.
  if process.returncode and not output:
    process.check_returncode()
  if json_file is not None:
    json_file.write_text(output)
  return json.loads(output)


def row(name: str, output: dict[str, Any]) -> str:
  """A line of the table, from the output of `covrl compile --json`."""
  programs = output['programs']
  step = programs['train_step']
  largest_program = max(
    programs, key=lambda program: programs[program]['hbm_bytes']
  )
  needed_bytes = programs[largest_program]['hbm_bytes']
  limit_bytes = programs[largest_program]['hbm_limit_bytes']
  cells = [
    name,
    output['topology'],
    f'{needed_bytes / 2**30:.1f} of {limit_bytes / 2**30:.1f} GiB, {needed_bytes / limit_bytes:.0%} '
    f'({largest_program})' + ('' if output['fits'] else ', does not fit'),
  ]
  if step['flops'] is not None:
    cells += [
      f'{step["flops"] / step["model_flops"]:.2f}',
      ', '.join(
        f'{sum(sent_bytes) / 1e9:,.3g} {network}'
        for network, sent_bytes in _sent_bytes(step).items()
      ),
      f'{step["roofline_seconds"]:.3g} s, {step["bound"]}',
      f'{step["mfu_ceiling"]:.0%}',
    ]
  decode = programs.get('decode')
  if decode is not None and decode['bytes']:
    cells.append(f'{decode["bytes"] / decode["ideal_bytes"]:.2f}')
  return f'| {" | ".join(cells)} |'


def _sent_bytes(step: dict[str, Any]) -> dict[str, list[float]]:
  """Bytes that a chip sends by kind of link."""
  sent: dict[str, list[float]] = {}
  for collective in step['collectives']:
    sent.setdefault(collective['network'], []).append(collective['bytes'])
  return sent


def main() -> None:
  """Compiles all programs, or those whose name contains a text."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--only', default='')
  parser.add_argument('--json', type=pathlib.Path)
  arguments = parser.parse_args()
  lines = []
  for name, recipe, topology, options in [*RECIPES, *GPUS, *SCALING, *VARIANTS]:
    if arguments.only not in name:
      continue
    json_file = (
      arguments.json and arguments.json / f'{name.replace(" ", "_")}.json'
    )
    output = compile_report(recipe, topology, options, json_file)
    lines.append(row(name, output))
    print(lines[-1], flush=True)
    for collective in output['programs']['train_step']['collectives']:
      if collective['bytes'] > 1e8:
        print('   ', collective)
  print()
  print(
    '| Qwen2.5 | chips | memory of the largest program | operations of an '
    "update, relative to the model's | GB sent per chip | roofline time of an "
    'update | MFU at most | decode traffic, relative to weights and a full cache |'
  )
  print('|---|---|---:|---:|---:|---:|---:|---:|')
  print('\n'.join(lines))


if __name__ == '__main__':
  main()
