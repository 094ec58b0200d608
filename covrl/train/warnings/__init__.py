# SPDX-License-Identifier: Apache-2.0
"""Warnings of parts of a recipe that have no effect, or another than it seems."""
