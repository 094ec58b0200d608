# SPDX-License-Identifier: Apache-2.0
"""Attention: of whole rows, of chunks, and of one new token over a KV cache."""
