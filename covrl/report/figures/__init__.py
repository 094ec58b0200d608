# SPDX-License-Identifier: Apache-2.0
"""Figures of reports: charts and their axes, as SVG."""
