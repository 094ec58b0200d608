# SPDX-License-Identifier: Apache-2.0
"""Pictures and the HTML report of a run, and comparisons of several."""

from covrl.report.page import write_report as write_report
