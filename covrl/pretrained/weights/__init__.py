# SPDX-License-Identifier: Apache-2.0
"""Weights in files: reading, mapping to parameters, checks."""
