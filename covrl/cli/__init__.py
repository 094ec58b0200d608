# SPDX-License-Identifier: Apache-2.0
"""The command line: one module per command, `main` and what they share."""

from covrl.cli.main import main as main
