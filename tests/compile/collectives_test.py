# SPDX-License-Identifier: Apache-2.0
"""Collectives in HLO: groups, bytes and networks."""

import pytest
from compile.hlo_text import parse_gpu_lines, parse_lines

from covrl.compile.collectives import collectives_in, groups_of, written_arrays
from covrl.compile.cost import cost_of
from covrl.compile.hlo import parse


def test_fused_all_reduce_and_slice_is_a_reduce_scatter():
  module = parse("""
%all-reduce-scatter.1 (x: bf16[32,128]) -> bf16[8,128] {
  %x = bf16[32,128]{1,0} parameter(0)
  %sum = bf16[32,128]{1,0} all-reduce(%x), replica_groups=[1,4]<=[4], to_apply=%add
  %i = s32[] constant(0)
  ROOT %part = bf16[8,128]{1,0} dynamic-slice(%sum, %i, %i), dynamic_slice_sizes={8,128}
}
ENTRY %main (x: bf16[32,128]) -> bf16[8,128] {
  %x = bf16[32,128]{1,0} parameter(0)
  ROOT %y = bf16[8,128]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
}
""")
  [collective] = collectives_in(module, module.entry.root)
  assert collective.kind == 'reduce-scatter'
  assert collective.sent_bytes == 3 / 4 * 2 * 32 * 128


@pytest.mark.parametrize(
  ('operation', 'sent'),
  [
    ('f32[32] all-gather(%x), replica_groups=[2,4]<=[8], dimensions={0}', 96),
    ('f32[8] all-to-all(%x), replica_groups=[2,4]<=[8], dimensions={0}', 24),
    (
      'f32[2] reduce-scatter(%x), replica_groups=[2,4]<=[8], dimensions={0}',
      24,
    ),
    ('f32[8] collective-permute(%x), source_target_pairs={{0,1},{1,0}}', 32),
    ('(f32[8], f32[32]) all-gather-start(%x), replica_groups=[2,4]<=[8]', 96),
  ],
)
def test_bytes_sent_by_collectives_equal_counts_by_hand(operation, sent):
  module = parse_lines('%x = f32[8] parameter(0)', f'ROOT %y = {operation}')
  [collective] = collectives_in(module, module.entry.root)
  assert collective.sent_bytes == sent


def test_a_collective_divided_over_fusions_counts_once():
  """Start, steps and end contain the same operation; another one counts, too."""
  gather = (
    '%g = f32[32,128]{1,0} all-gather(%x), channel_id=CHANNEL, '
    'replica_groups=[1,4]<=[4], dimensions={0}'
  )
  fused = """
%NAME (x: f32[8,128]) -> f32[32,128] {
  %x = f32[8,128]{1,0} parameter(0)
  GATHER
  ROOT %r = f32[32,128]{1,0} negate(%g)
}
"""
  computation = fused.replace('GATHER', gather)
  module = parse(
    computation.replace('NAME', 'divided').replace('CHANNEL', '7')
    + computation.replace('NAME', 'other').replace('CHANNEL', '8')
    + """
ENTRY %main (x: f32[8,128]) -> f32[32,128] {
  %x = f32[8,128]{1,0} parameter(0)
  %async-collective-start.1 = f32[32,128]{1,0} fusion(%x), calls=%divided
  %fusion.9 = f32[32,128]{1,0} fusion(%x), calls=%divided
  %fusion.10 = f32[32,128]{1,0} fusion(%x), calls=%other
  ROOT %async-collective-done.1 = f32[32,128]{1,0} fusion(%x), calls=%divided
}
"""
  )
  collectives = cost_of(module).collectives
  assert [collective.channel for collective, _ in collectives] == ['7', '8']
  assert (
    sum(collective.sent_bytes * count for collective, count in collectives)
    == 2 * 3 * 4 * 8 * 128
  )


def test_transfers_between_slices_are_all_reduces_over_dcn():
  attributes = (
    'is_host_transfer=true, frontend_attributes={'
    '_xla_host_transfer_handler_name="xla_megascale_runtime",'
    '_xla_megascale_target="{1,2,3}x{0:7}",'
    '_xla_megascale_transfer_type="ALL_REDUCE"}'
  )
  module = parse_lines(
    '%x = f32[8,128]{1,0:T(8,128)} parameter(0)',
    '%after = token[] after-all()',
    '%out = (f32[8,128]{1,0:T(8,128)}, u32[], token[]) send(%x, %after), '
    + attributes,
    '%in = (f32[8,128]{1,0:T(8,128)}, u32[], token[]) recv(%after), '
    + attributes,
    '%done = (f32[8,128]{1,0:T(8,128)}, token[]) recv-done(%in), ' + attributes,
    'ROOT %y = f32[8,128]{1,0:T(8,128)} get-tuple-element(%done), index=0',
  )
  cost = cost_of(module)
  [(collective, count)] = cost.collectives
  assert (collective.kind, collective.network, count) == (
    'all-reduce',
    'dcn',
    1,
  )
  assert collective.groups == ((1, 2, 3),)
  assert collective.sent_bytes == 2 * 2 / 3 * 4 * 8 * 128
  assert cost.bytes == 2 * 4 * 8 * 128
  assert cost.flops == 0


def test_parses_groups_along_mesh_axes():
  text = (
    "replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) "
    "{'axis_0'}, use_global_device_ids=true"
  )
  assert groups_of(text) == ((0, 1, 2, 3), (4, 5, 6, 7))
  both = text.replace("{'axis_0'}", "{'axis_0','axis_1'}")
  assert groups_of(both) == ((0, 4, 1, 5, 2, 6, 3, 7),)
  part = "replica_groups=mesh['a'=8] {'a':(2)2}"
  assert groups_of(part) == ((0, 2), (1, 3), (4, 6), (5, 7))


@pytest.mark.parametrize(
  ('operation', 'kind', 'sent'),
  [
    (
      '((f32[8], s32[8]), (f32[32], s32[32])) all-gather-start(%x, %y), '
      'replica_groups=[2,4]<=[8], dimensions={0}',
      'all-gather',
      2 * 96,
    ),
    (
      '((f32[8]), f32[2]) reduce-scatter-start(%x), replica_groups=[2,4]<=[8], '
      'dimensions={0}',
      'reduce-scatter',
      24,
    ),
    (
      '((f32[8]), f32[8]) all-to-all-start(%x), replica_groups=[2,4]<=[8]',
      'all-to-all',
      24,
    ),
    (
      'f32[8] all-reduce-start(%x), replica_groups=[2,4]<=[8]',
      'all-reduce',
      48,
    ),
  ],
)
def test_asynchronous_collectives_of_gpus_count_once(operation, kind, sent):
  module = parse_gpu_lines(
    '%x = f32[8]{0} parameter(0)',
    '%y = s32[8]{0} parameter(1)',
    f'%started = {operation}',
    f'ROOT %done = f32[8]{{0}} {kind}-done(%started)',
  )
  cost = cost_of(module)
  [(collective, count)] = cost.collectives
  assert (collective.kind, collective.sent_bytes, count) == (kind, sent, 1)
  assert cost.flops == 0
  # Read and written once each; waiting for the end moves nothing.
  start = module.entry.instructions['started']
  bytes_read = 4 * 8 * len(start.operands)
  assert cost.bytes == bytes_read + sum(s.size for s in written_arrays(start))
