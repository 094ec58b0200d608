# SPDX-License-Identifier: Apache-2.0
"""The jitted step, the loop, checkpoints, metrics, evaluation."""
