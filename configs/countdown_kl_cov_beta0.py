"""KL-Cov with coefficient 0: selects, and does nothing to the selected.

  covrl train --config=configs/countdown_kl_cov_beta0.py --workdir=runs/countdown_kl_cov_beta0

Hardware: two CPU cores, about six minutes, warm start included.
Expect: a control; must be the run without a clip, to the bit.
"""

import countdown
import countdown_kl_cov

from covrl.config import Config

make_advantages = countdown.make_advantages
make_model = countdown.make_model
make_task = countdown.make_task
make_tx = countdown.make_tx
make_warm_start_tx = countdown.make_warm_start_tx
make_loss = countdown_kl_cov.make_loss
make_token_tx = countdown_kl_cov.make_token_tx


def get_config() -> Config:
  config = countdown.get_config()
  config.entropy.coefficient = 0.0
  return config
