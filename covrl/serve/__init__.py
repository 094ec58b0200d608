# SPDX-License-Identifier: Apache-2.0
"""HTTP server of completions, and sampling of files of prompts.

`covrl.serve.app` needs the packages of `covrl[serve]`.
"""

from covrl.serve.batch import sample_lines as sample_lines
from covrl.serve.metrics import Metrics as Metrics
from covrl.serve.policy import ServedPolicy as ServedPolicy
from covrl.serve.policy import load_model as load_model
from covrl.serve.policy import load_run as load_run
from covrl.serve.worker import Worker as Worker
