# SPDX-License-Identifier: Apache-2.0
"""Time of a rollout: covrl, Tunix and TRL alternated, and covrl's decode step.

  tests/benchmarks/install_peers.sh FOLDER
  python tests/benchmarks/rollout.py --environments=FOLDER [--part peers]
    [--shape=geometric] [--peer covrl tunix] [--rounds=7] [--json=FILE]

The parts: `peers` samples responses and decodes them to text with each library,
in processes and environments of their own (see rl_step.py). All responses are of
full length, and of geometric lengths at the shape `geometric`: 16 of 1,024
tokens end a response, and the policy, of small random matrices, is almost
uniform, so that each token is the last with probability 1/64 in every library.
`token_sampling` is the share of a decode step that sampling tokens takes, timed by
itself. `roofline` compares decoding of 64 rows with the time that its
operations and its reads need at the rates of a large matrix product and of a sum
over 256 MiB, measured in the same run.
"""

from __future__ import annotations

from peers import driver

PARTS = ('peers', 'token_sampling', 'roofline')


def main() -> None:
  """Prints a table for each part."""
  parser = driver.parser(__doc__ or '', ('4x4', '8x8', '32k', 'geometric'))
  parser.add_argument('--part', nargs='*', choices=PARTS, default=[*PARTS])
  options = parser.parse_args()
  if 'peers' in options.part:
    driver.report('rollout', options, ())
  if options.part == ['peers']:
    return
  # Imported here, so that JAX holds no memory while the peers run.
  import decode_cost

  if 'token_sampling' in options.part:
    decode_cost.token_sampling(options.rounds)
  if 'roofline' in options.part:
    decode_cost.roofline(options.rounds)


if __name__ == '__main__':
  try:
    main()
  except driver.PeerError as error:
    raise SystemExit(str(error)) from None
