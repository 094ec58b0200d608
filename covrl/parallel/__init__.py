# SPDX-License-Identifier: Apache-2.0
"""Meshes, sharding rules, device topologies and multi-host processes."""
