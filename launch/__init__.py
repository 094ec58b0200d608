# SPDX-License-Identifier: Apache-2.0
"""What starts covrl on Cloud TPUs, GKE, Slurm and on one machine.

  python -m launch tpu --name=kl-cov --type=v5p-64 --zone=us-east5-a --spot \\
    --project=my-project -- --config=configs/math.py --workdir=gs://bucket/kl-cov
  python -m launch gke --name=kl-cov --type=v5p-64 --image=IMAGE -- …
  python -m launch slurm --name=kl-cov --nodes=4 --gpus-per-node=8 -- …
  python -m launch local --name=kl-cov --processes=2 -- …

What follows `--` are the arguments of `covrl train`. With `--dry-run` nothing
is done: every command, script and manifest is printed as it would be used.

Launchers start a run again where its exit status means so (`covrl.exit_codes`: 42,
43, 44 and deaths by a signal), at most `--restarts` times. They end with 0 if
the run finished, with the run's own status if that means no restart, with 42 if
the restarts are used up, with 1 if a command of theirs failed, and with 2 on
bad input.
"""
