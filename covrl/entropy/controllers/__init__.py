# SPDX-License-Identifier: Apache-2.0
"""Controllers: coefficients that respond to the measured entropy."""
