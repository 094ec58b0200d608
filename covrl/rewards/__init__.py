# SPDX-License-Identifier: Apache-2.0
"""Scores for finished responses, computed in killable processes."""
