# SPDX-License-Identifier: Apache-2.0
"""Memory and time for reading a large pretrained model.

  python tests/benchmarks/load_memory.py --directory=/tmp/large
  python tests/benchmarks/load_memory.py --directory=/tmp/large --mesh=1,2,4

The first run writes a random model of about 4 GB (bfloat16, two files) and an
Orbax copy of it. Each reading is done in a separate process, with fake CPU
devices for a mesh. On a CPU the arrays count as the process's memory, unlike on
an accelerator; the bound is on the rest:

  beyond = peak − before − arrays ≤ largest tensor + 1 GiB

with the largest tensor in the requested type, so in float32 twice its size in
the file. Memory is resident memory in MiB, mapped files included; seconds are
wall-clock and CPU seconds; files are in the page cache if they fit. Exits with 1
if the bound is exceeded.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

MIB = 2**20


def main() -> None:
  """Prints the table; in a child process, one measurement as JSON."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--directory', type=pathlib.Path, required=True)
  parser.add_argument('--mesh', default='')
  parser.add_argument('--dtype', default='')
  # For child processes: `write`, or the directory to read.
  parser.add_argument('--task', help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.task:
    if arguments.task == 'write':
      _write(arguments.directory)
      print('{}')
    else:
      measurements = _read(arguments.task, arguments.mesh, arguments.dtype)
      print(json.dumps(measurements))
    return
  safetensors_directory, orbax_directory = (
    arguments.directory / name for name in ('plain', 'copy')
  )
  if not orbax_directory.exists():
    _run_in_process('write', arguments)
  print('| form | dtype | mesh | arrays | largest | beyond | s | CPU s |')
  print('|---|---|---|---:|---:|---:|---:|---:|')
  is_within_bound = True
  dtypes = [arguments.dtype] if arguments.dtype else ['bfloat16', 'float32']
  for file_format, directory in (
    ('safetensors', safetensors_directory),
    ('Orbax copy', orbax_directory),
  ):
    for arguments.dtype in dtypes:
      measurements = _run_in_process(str(directory), arguments)
      is_within_bound &= (
        measurements['beyond'] <= measurements['largest'] + 1024
      )
      print(
        f'| {file_format} | {arguments.dtype} | {arguments.mesh or "-"} '
        f'| {measurements["arrays"]:.0f} | {measurements["largest"]:.0f} '
        f'| {measurements["beyond"]:.0f} | {measurements["seconds"]:.1f} '
        f'| {measurements["cpu_seconds"]:.1f} |'
      )
  raise SystemExit(not is_within_bound)


def _run_in_process(
  task: str, arguments: argparse.Namespace
) -> dict[str, float]:
  """Writes or reads in a child process; returns the numbers that it prints.

  Args:
    task: `write`, or the directory to read.
    arguments: options of the command.
  """
  devices = 1
  for size in filter(None, arguments.mesh.split(',')):
    devices *= int(size)
  flags = f'--xla_force_host_platform_device_count={devices}'
  command = [sys.executable, __file__, f'--directory={arguments.directory}']
  command += [f'--mesh={arguments.mesh}', f'--dtype={arguments.dtype}']
  completed = subprocess.run(
    [*command, f'--task={task}'],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags},
    check=True,
    stdout=subprocess.PIPE,
    text=True,
  )
  return json.loads(completed.stdout.splitlines()[-1])


def _write(directory: pathlib.Path) -> None:
  """Writes a random model, with an embedding as large as Qwen's, and its copy."""
  import jax

  from covrl.models import ModelConfig, Policy
  from covrl.pretrained import convert, load_pretrained, save_pretrained

  config = ModelConfig(
    vocab_size=152064,
    num_layers=12,
    model_dim=2560,
    num_heads=20,
    num_kv_heads=4,
    head_dim=128,
    hidden_dim=8192,
    tied_embeddings=False,
    dtype='bfloat16',
    param_dtype='bfloat16',
  )
  policy = Policy(config)
  params = policy.init(jax.random.key(0))
  save_pretrained(directory / 'plain', policy, params, shard_bytes=2**31)
  # A loaded policy has the files that the copy needs.
  policy, params = load_pretrained(directory / 'plain')
  convert(policy, params, directory / 'copy', output_format='orbax')


def _read(directory: str, mesh: str, dtype: str) -> dict[str, float]:
  """Reads a model; returns memory in MiB, wall-clock and CPU seconds."""
  import jax

  from covrl.parallel import sharding
  from covrl.pretrained import load_params, load_policy

  shape = [int(size) for size in mesh.split(',')] if mesh else None
  device_mesh = sharding.make_mesh(shape) if shape else None
  policy = load_policy(directory, dtype)
  jax.block_until_ready(jax.numpy.zeros(8))
  resident_before = _memory_status('VmRSS')
  pathlib.Path('/proc/self/clear_refs').write_text('5')
  started, cpu_started = time.monotonic(), time.process_time()
  params = jax.block_until_ready(load_params(directory, policy, device_mesh))
  seconds, cpu_seconds = (
    time.monotonic() - started,
    time.process_time() - cpu_started,
  )
  leaves = jax.tree.leaves(params)
  arrays = sum(
    shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards
  )
  largest = max(
    leaf.nbytes // (leaf.shape[0] if leaf.ndim > 2 else 1) for leaf in leaves
  )
  return {
    'arrays': arrays / MIB,
    'largest': largest / MIB,
    'beyond': _memory_status('VmHWM') - resident_before - arrays / MIB,
    'seconds': seconds,
    'cpu_seconds': cpu_seconds,
  }


def _memory_status(name: str) -> float:
  """A line of this process's status, in MiB."""
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith(f'{name}:'):
      return int(line.split()[1]) / 1024
  raise ValueError(
    f'the status of a process must have the line {name}, got none'
  )


if __name__ == '__main__':
  main()
