#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Test replacement of gcloud, kubectl, sbatch, scontrol, srun and xpk.

Records its arguments. Its status and output are those of the first entry in the
plan whose `match` is part of the arguments and which was used fewer than `times`
times (default 1): `status`, `out` and `err`.
"""

import fcntl
import json
import os
import pathlib
import sys


def main():
  """Records the call and gives the next answer."""
  folder = pathlib.Path(os.environ['FAKE_FOLDER'])
  command = [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]
  with (folder / 'lock').open('w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    with (folder / 'calls.jsonl').open('a') as calls:
      calls.write(json.dumps(command) + '\n')
    plan = json.loads((folder / 'plan.json').read_text())
    answer = {}
    for line in plan:
      if line['match'] in ' '.join(command) and line.get('times', 1) > 0:
        line['times'] = line.get('times', 1) - 1
        answer = line
        break
    (folder / 'plan.json').write_text(json.dumps(plan))
  sys.stdout.write(answer.get('out', ''))
  sys.stderr.write(answer.get('err', ''))
  sys.exit(answer.get('status', 0))


if __name__ == '__main__':
  main()
