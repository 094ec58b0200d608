# SPDX-License-Identifier: Apache-2.0
"""Infrastructure of a long job: directory, checkpoints, lock, metrics, signals."""
