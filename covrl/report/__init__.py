# SPDX-License-Identifier: Apache-2.0
"""Pictures and the HTML report of a run, and comparisons of several."""

from covrl.report.comparison import comparison_svg as comparison_svg
from covrl.report.comparison import comparison_table as comparison_table
from covrl.report.comparison import write_comparison as write_comparison
from covrl.report.page import write_report as write_report
