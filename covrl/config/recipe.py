# SPDX-License-Identifier: Apache-2.0
"""Recipes: a configuration, and the functions that build a run from it."""

import copy
import dataclasses
import hashlib
import json
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from covrl.config.conversion import flatten
from covrl.config.fields import Config

# Fields that may change when a run is resumed: they affect the length of training
# and the files that are written, but not the computed values. More iterations change
# those of a run that samples ahead, and `logging.diagnostics_every` the last bits,
# which is reported.
CHANGEABLE_ON_RESUME = (
  'train.iterations',
  'train.max_skipped_updates',
  'checkpoint.',
  'logging.',
  'evaluate.suite_directory',
  'rewards.max_failures',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """A configuration, and functions that build the parts of a run from it.

  The functions are called with the configuration after overrides, so that every
  number they read can be set on the command line. A recipe copies its
  configuration: a variant made by `dataclasses.replace` has its own copy.

  Attributes:
    config: the configuration.
    task: config -> `covrl.tasks.task.Task`.
    model: config, vocabulary size -> `covrl.models.ModelConfig`.
    advantages: config -> function of rewards and group ids, both `[S]`, to
      advantages `[S]`; a function with a further argument `mask`, the response
      tokens `[S, T]`, may return advantages `[S, T]`.
    loss: config -> policy loss, such as `covrl.clipped_surrogate`.
    token_tx: config -> token chain, such as `covrl.kl_cov`.
    tx: config -> parameter chain, any optax transformation. It gets the loss as
      `value`. Evaluations and exports are of the trained parameters, also where
      optax has others for them (`optax.contrib.schedule_free`).
    warm_start_tx: config -> parameter chain of the supervised warm start.
    networks: config -> networks beside the policy by name, such as a critic; see
      `covrl.train.networks`.
    estimator: config -> `covrl.train.networks.Estimator` of advantages per
      token from rewards and the networks' outputs, in place of `advantages`;
      `None` without one.
    name: file and function, `countdown:kl_cov`; set by `load`.
    sources: text of the recipe's file and of the neighbours that it imports, by
      file name; set by `load`.
    directory: directory of these files, which may hold packages that they import;
      set by `load`.
    overridden: dotted names of the fields that were overridden; set by `load`.
  """

  config: Config
  task: Callable[[Config], Any]
  model: Callable[[Config, int], Any]
  advantages: Callable[[Config], Any]
  loss: Callable[[Config], Any]
  token_tx: Callable[[Config], Any]
  tx: Callable[[Config], Any]
  warm_start_tx: Callable[[Config], Any]
  networks: Callable[[Config], Mapping[str, Any]] = lambda config: {}
  estimator: Callable[[Config], Any] = lambda config: None
  name: str = ''
  sources: Mapping[str, str] = dataclasses.field(default_factory=dict)
  directory: pathlib.Path | None = None
  overridden: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    object.__setattr__(self, 'config', copy.deepcopy(self.config))

  @property
  def modules(self) -> dict[str, tuple[str, str]]:
    """File and text of each of the sources, by the name of its module.

    A file with the name of an installed module is left out: the name imports the
    installed one.
    """
    directory = self.directory or pathlib.Path()
    return {
      module: (str(directory / name), text)
      for name, text in self.sources.items()
      if (module := name.removesuffix('.py')) not in sys.stdlib_module_names
      and module not in sys.modules
    }

  @property
  def identity(self) -> str:
    """Hash of the name, the sources and all fields that a resume may not change."""
    fields = {
      name: value
      for name, value in flatten(self.config).items()
      if not name.startswith(CHANGEABLE_ON_RESUME)
    }
    text = json.dumps([self.name, dict(self.sources), fields], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()

  def as_json(self) -> dict[str, Any]:
    """Returns the recipe's description, as `config.json` keeps it."""
    return {
      'name': self.name,
      'config': dataclasses.asdict(self.config),
      'source': self.sources[f'{self.name.partition(":")[0]}.py'],
      'identity': self.identity,
    }
