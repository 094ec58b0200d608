# SPDX-License-Identifier: Apache-2.0
"""Problems that programs generate: arithmetic, Countdown, mazes."""
