"""What recipes for pretrained policies of 32 billion parameters share.

Not a recipe of its own. As `reasoning_7b`, with a tenth of KL-Cov's fraction,
twice the learning rate and half of the updates, as published.
"""

import reasoning_7b

from covrl.config import Config

make_advantages = reasoning_7b.make_advantages
make_model = reasoning_7b.make_model
make_task = reasoning_7b.make_task
make_tx = reasoning_7b.make_tx
make_warm_start_tx = reasoning_7b.make_warm_start_tx


def get_config() -> Config:
  config = reasoning_7b.get_config()
  # On 128 chips 64 parts of a width of 5,120: multiples of 16 rows, without which
  # a TPU's gradients do not leave by reduce-scatter.
  config.mesh.data = 2
  config.train.iterations = 140
  config.train.micro_batches = 2
  config.train.remat = 'gate'
  config.train.learning_rate = 1e-6
  config.entropy.fraction = 2e-4
  return config
