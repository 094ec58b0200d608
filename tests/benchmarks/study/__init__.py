# SPDX-License-Identifier: Apache-2.0
"""Study of entropy-control methods on small tasks; see README.md."""
