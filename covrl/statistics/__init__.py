# SPDX-License-Identifier: Apache-2.0
"""Hidden states to per-token statistics, without a [B, T, V] array."""
