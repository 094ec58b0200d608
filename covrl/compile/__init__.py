# SPDX-License-Identifier: Apache-2.0
"""Ahead-of-time compilation for TPUs and GPUs, and estimates of memory and time."""

from covrl.compile.programs import PROGRAM_NAMES as PROGRAM_NAMES
from covrl.compile.programs import compile_recipe as compile_recipe
from covrl.compile.report import Memory as Memory
from covrl.compile.report import Program as Program
from covrl.compile.report import Report as Report
