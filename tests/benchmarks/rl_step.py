# SPDX-License-Identifier: Apache-2.0
"""Time of a whole RL step: covrl, Tunix and TRL, alternated.

  tests/benchmarks/install_peers.sh FOLDER
  python tests/benchmarks/rl_step.py --environments=FOLDER [--shape=8x8]
    [--peer covrl tunix] [--rounds=7] [--stage=update] [--json=FILE]

Each library runs in a process and an environment of its own, with a Qwen2 of the
same sizes and random matrices, float32, and GRPO with one update per rollout:
no KL penalty, clip 0.2, Adam, gradients clipped, instant rewards, responses of
full length. A step is the rollout, scoring where the library has it, rewards,
advantages and the update, in the library's own loop. Ratios are to the first
library's time in the same round. On a loaded machine the ratio of core seconds
is more reliable; those of covrl leave out the worker process that computes rewards.
`covrl:returned` is covrl with freed memory returned to the system, see
`peers.driver.ALLOCATORS`.
"""

from __future__ import annotations

from peers import driver

STAGES = ('rollout', 'scoring', 'update')


def main() -> None:
  """Prints a table."""
  parser = driver.parser(__doc__ or '', ('4x4', '8x8', '32k'))
  parser.add_argument(
    '--stage',
    choices=('step', *STAGES),
    default='step',
    help='stage to repeat; scoring and update are stages of covrl only, to profile',
  )
  options = parser.parse_args()
  other_peers = {*options.peer} - {'covrl', 'covrl:returned'}
  if options.stage in ('scoring', 'update') and other_peers:
    parser.error(f'--stage={options.stage} must be given with --peer covrl')
  driver.report(options.stage, options, STAGES)


if __name__ == '__main__':
  try:
    main()
  except driver.PeerError as error:
    raise SystemExit(str(error)) from None
