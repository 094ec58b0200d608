# SPDX-License-Identifier: Apache-2.0
"""HTML reports of runs, of comparisons, and of the theory claims."""

from covrl.report.pages.comparison import comparison_svg as comparison_svg
from covrl.report.pages.comparison import comparison_table as comparison_table
from covrl.report.pages.comparison import write_comparison as write_comparison
from covrl.report.pages.run import write_report as write_report
