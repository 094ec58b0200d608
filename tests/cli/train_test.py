# SPDX-License-Identifier: Apache-2.0
"""The supervised process of `covrl train`."""

import subprocess
import sys


def test_a_supervised_process_executes_the_package_of_its_parent(tmp_path):
  # A package of the same name in the working directory, as in a checkout.
  (tmp_path / 'covrl').mkdir()
  (tmp_path / 'covrl' / '__init__.py').write_text('print("another covrl")')
  script = tmp_path / 'covrl_script.py'
  script.write_text(
    'import sys\nfrom covrl.cli import main\nfrom covrl.parallel import supervisor\n'
    'supervisor.supervise = print\nsys.path.remove(sys.path[0])\n'
    'main(["train", "--config=countdown:grpo", "--workdir=run",'
    ' "--coordinator=127.0.0.1:1", "--num_processes=1", "--process_id=0"])\n'
  )
  command = [sys.executable, '-P', str(script)]
  process = subprocess.run(
    command, cwd=tmp_path, capture_output=True, text=True, check=False
  )
  assert process.returncode == 0, process.stderr
  assert f"['{sys.executable}', '-P', '-m', 'covrl.cli', 'train'" in (
    process.stdout
  )
