# SPDX-License-Identifier: Apache-2.0
"""Inputs of reports: metrics, results and samples of run directories."""
