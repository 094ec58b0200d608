# SPDX-License-Identifier: Apache-2.0
"""Makes policy_losses.npz, a subset of a larger set of test vectors.

  python tests/golden/make_policy_losses.py PATH/TO/policy_losses.npz

The input holds, per function and case, inputs, float32 outputs and float64
outputs of a published implementation (see README.md). All entries of clip_cov
and kl_cov are kept; of other functions, inputs and outputs without metrics and
duplicates. Entries are named `<function>/<case>/<in|out|out64>/<name>`.
"""

import json
import pathlib
import sys

import numpy as np

COMPLETE = ('clip_cov', 'kl_cov')
# Number of cases to keep of functions with many similar ones.
MAX_CASES = {'kl_penalty': 4, 'entropy': 2}
# Hyperparameters of a case that deterministic losses depend on.
OPTIONS = (
  'kind',
  'loss_agg_mode',
  'clip_ratio_low',
  'clip_ratio_high',
  'clip_ratio_c',
  'gamma',
  'lam',
  'norm_adv_by_std',
)


def belongs_to_subset(key: str, arrays: dict[str, np.ndarray]) -> bool:
  """Whether an entry belongs to the subset."""
  function, case, direction, *name = key.split('/')
  if function in COMPLETE:
    return True
  cases = sorted(
    {k.split('/')[1] for k in arrays if k.startswith(f'{function}/')}
  )
  if case not in cases[: MAX_CASES.get(function, len(cases))]:
    return False
  if name[0] == 'metric':
    return False
  if direction == 'out' and key.replace('/out/', '/out64/') in arrays:
    # Results are compared with the more accurate float64 output.
    return False
  # The duplicates: other functions' returns repeat their advantages.
  is_duplicate = name == ['returns'] and function not in (
    'gae',
    'reinforce_plus_plus',
  )
  return not is_duplicate


def main(source: str) -> None:
  """Writes the subset of a file of vectors."""
  with np.load(source) as file:
    arrays = {key: file[key] for key in file.files}
  meta = json.loads(str(arrays.pop('meta')))
  subset = {
    key: value
    for key, value in arrays.items()
    if belongs_to_subset(key, arrays)
  }
  cases = {'/'.join(key.split('/')[:2]) for key in subset}
  options = {
    case: {
      name: value
      for name, value in meta[case].items()
      if name in OPTIONS or case.split('/')[0] in COMPLETE
    }
    for case in sorted(cases)
  }
  target = pathlib.Path(__file__).with_name('policy_losses.npz')
  np.savez_compressed(target, meta=np.array(json.dumps(options)), **subset)
  print(f'{len(subset)} arrays, {target.stat().st_size / 1e3:.0f} kB')


if __name__ == '__main__':
  main(*sys.argv[1:])
