# SPDX-License-Identifier: Apache-2.0
"""HTML pages: of a run, of a comparison, of a study, of the theory."""
