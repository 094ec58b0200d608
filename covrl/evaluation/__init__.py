# SPDX-License-Identifier: Apache-2.0
"""Evaluation: pass@k, intervals, suites of problems and the reward–entropy law."""
