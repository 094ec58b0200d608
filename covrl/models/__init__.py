# SPDX-License-Identifier: Apache-2.0
"""Decoder-only transformers."""
