# SPDX-License-Identifier: Apache-2.0
"""Entropy control: selection, token transforms, methods."""
