# SPDX-License-Identifier: Apache-2.0
"""Runs the command line as `python -m covrl.cli`."""

from covrl.cli.main import main

if __name__ == '__main__':
  main()
