# SPDX-License-Identifier: Apache-2.0
"""Advantages, policy losses and divergences: pure functions on arrays."""
