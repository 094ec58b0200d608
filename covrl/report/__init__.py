# SPDX-License-Identifier: Apache-2.0
"""Pictures and the HTML report of a run."""
