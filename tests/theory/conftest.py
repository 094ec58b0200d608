# SPDX-License-Identifier: Apache-2.0
"""Every shape annotation of the lab is checked, as those of other rooms."""

from jaxtyping import install_import_hook

install_import_hook(['covrl.theory'], 'beartype.beartype')
