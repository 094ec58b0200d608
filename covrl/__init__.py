# SPDX-License-Identifier: Apache-2.0
"""covrl: entropy control for reinforcement learning of language models.

The most used functions are at the top level: token statistics, losses,
advantages, and token transforms that edit the losses' cotangents. All losses
are in `covrl.losses`, advantages in `covrl.advantages`, selectors of tokens in
`covrl.selectors`, controllers of coefficients in `covrl.controllers`, token
transforms in `covrl.entropy` and data types in `covrl.types`. Other packages,
such as `covrl.rewards` and `covrl.train`, are imported on first use.
"""

import ast
import importlib
import pathlib
from typing import TYPE_CHECKING, Any

# Imported on first use, so that `covrl --help` need not wait for JAX.
if TYPE_CHECKING:
  from covrl import advantages as advantages
  from covrl import controllers as controllers
  from covrl import losses as losses
  from covrl import selectors as selectors
  from covrl.entropy import Selection as Selection
  from covrl.entropy import SelectionSummary as SelectionSummary
  from covrl.entropy import adaptive_bonus as adaptive_bonus
  from covrl.entropy import add_divergence_penalty as add_divergence_penalty
  from covrl.entropy import add_entropy_bonus as add_entropy_bonus
  from covrl.entropy import aent as aent
  from covrl.entropy import as_loss as as_loss
  from covrl.entropy import ce_gppo as ce_gppo
  from covrl.entropy import clip_cov as clip_cov
  from covrl.entropy import decoupled_ppo as decoupled_ppo
  from covrl.entropy import detach_drain as detach_drain
  from covrl.entropy import entrocraft as entrocraft
  from covrl.entropy import entropic as entropic
  from covrl.entropy import entropy_bonus as entropy_bonus
  from covrl.entropy import entropy_change as entropy_change
  from covrl.entropy import entropy_ratio_clip as entropy_ratio_clip
  from covrl.entropy import entropy_shaped as entropy_shaped
  from covrl.entropy import exact_score as exact_score
  from covrl.entropy import explain as explain
  from covrl.entropy import forking_tokens as forking_tokens
  from covrl.entropy import icepop as icepop
  from covrl.entropy import jvp_score as jvp_score
  from covrl.entropy import kl_cov as kl_cov
  from covrl.entropy import kl_to_reference as kl_to_reference
  from covrl.entropy import lp_reg as lp_reg
  from covrl.entropy import reject_sequences as reject_sequences
  from covrl.entropy import repo as repo
  from covrl.entropy import sample_weights as sample_weights
  from covrl.entropy import select_random as select_random
  from covrl.entropy import select_top as select_top
  from covrl.entropy import steer as steer
  from covrl.entropy import target_entropy as target_entropy
  from covrl.entropy import token_covariance as token_covariance
  from covrl.entropy import token_masked as token_masked
  from covrl.entropy import (
    truncated_importance_weights as truncated_importance_weights,
  )
  from covrl.entropy import update_signal as update_signal
  from covrl.objectives import clipped_surrogate as clipped_surrogate
  from covrl.objectives import group_relative as group_relative
  from covrl.objectives import gspo as gspo
  from covrl.objectives import leave_one_out as leave_one_out
  from covrl.objectives import policy_gradient as policy_gradient
  from covrl.objectives import token_weights as token_weights
  from covrl.pretrained import load_pretrained as load_pretrained
  from covrl.pretrained import save_pretrained as save_pretrained
  from covrl.statistics import Truncation as Truncation
  from covrl.statistics import token_stats as token_stats
  from covrl.statistics import (
    token_stats_from_logits as token_stats_from_logits,
  )
  from covrl.types import TokenContext as TokenContext
  from covrl.types import TokenMoments as TokenMoments
  from covrl.types import TokenStats as TokenStats


def _lazy_imports() -> dict[str, str]:
  """Returns the package of each name that this file imports on first use."""
  tree = ast.parse(pathlib.Path(__file__).read_text(encoding='utf-8'))
  imports = (
    node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
  )
  return {
    alias.name: node.module
    for node in imports
    if node.module and node.module.startswith('covrl.')
    for alias in node.names
  }


_PACKAGE_OF = _lazy_imports()
# Modules that hold all functions of a kind.
_GROUPS = ('advantages', 'controllers', 'losses', 'selectors')
_MODULES = frozenset(
  path.stem
  for path in pathlib.Path(__file__).parent.iterdir()
  if path.suffix == '.py' or (path / '__init__.py').exists()
  if not path.stem.startswith('_')
)


def __dir__() -> list[str]:
  return sorted({*globals(), *_PACKAGE_OF, *_MODULES})


def __getattr__(name: str) -> Any:
  """Imports a function or a package on first use."""
  if name in _PACKAGE_OF:
    return getattr(importlib.import_module(_PACKAGE_OF[name]), name)
  if name in _MODULES:
    return importlib.import_module(f'covrl.{name}')
  groups = [importlib.import_module(f'covrl.{group}') for group in _GROUPS]
  modules = [group.__name__ for group in groups if hasattr(group, name)]
  hint = f'; it is {modules[0]}.{name}' if modules else ''
  raise AttributeError(f'module covrl has no attribute {name!r}{hint}')
