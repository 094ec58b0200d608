# SPDX-License-Identifier: Apache-2.0
"""HTML reports of runs, of comparisons, and of the theory claims."""

from covrl.report.comparison_page import comparison_svg as comparison_svg
from covrl.report.comparison_page import comparison_table as comparison_table
from covrl.report.comparison_page import write_comparison as write_comparison
from covrl.report.run_page import write_report as write_report
