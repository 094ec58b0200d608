# SPDX-License-Identifier: Apache-2.0
"""The command line: one module per command, `main` and shared helpers."""

from covrl.cli.main import main as main
