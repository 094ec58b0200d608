# SPDX-License-Identifier: Apache-2.0
"""Launchers: start covrl on Cloud TPU, GKE, Slurm or several local processes.

  python -m launch tpu --name=kl-cov --type=v5p-64 --zone=us-east5-a --spot \\
    --project=my-project -- --config=reasoning:qwen2_5_7b_kl_cov \\
    --workdir=gs://bucket/kl-cov
  python -m launch gke --name=kl-cov --type=v5p-64 --image=IMAGE -- …
  python -m launch slurm --name=kl-cov --nodes=4 --gpus-per-node=8 -- …
  python -m launch local --name=kl-cov --processes=2 -- …

Arguments after `--` are passed to `covrl train`. With `--dry-run` every
command, script and manifest is printed and nothing is executed.

A run is restarted after an exit status that requests it (`covrl.exit_codes`: 42,
43, 44 and those of signals), at most `--restarts` times. A launcher exits with 0
if the run finished, with the run's own status if that excludes a restart, with
42 if all restarts are used up, with 1 if one of its own commands failed, and
with 2 on bad input.
"""
