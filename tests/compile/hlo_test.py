# SPDX-License-Identifier: Apache-2.0
"""Parsing of HLO and cost analysis, compared with counts by hand."""

import pytest

from covrl.compile.collectives import collectives_in, groups_of, results
from covrl.compile.cost import SEARCH_TRIPS, Scopes, cost_of
from covrl.compile.hlo import Shape, parse, shapes_of
from covrl.compile.kernels import blocks, kernel_of

# A loop of three trips around a matrix product that a TPU makes a convolution,
# whose weight is a slice of a stack; then a sum over four chips.
LOOP = """
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%product (x: bf16[16,256], w: bf16[3,256,512], i: s32[]) -> bf16[16,512] {
  %x = bf16[16,256]{1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[3,256,512]{2,1,0:T(8,128)(2,1)} parameter(1)
  %i = s32[]{:T(128)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  %slice = bf16[1,256,512]{2,1,0:T(8,128)(2,1)} dynamic-slice(%w, %i, %zero, %zero), dynamic_slice_sizes={1,256,512}
  %matrix = bf16[256,512]{1,0:T(8,128)(2,1)} bitcast(%slice)
  ROOT %y = bf16[16,512]{1,0:T(8,128)(2,1)} convolution(%x, %matrix), dim_labels=bf_io->bf
}

%body (state: (s32[], bf16[16,256], bf16[3,256,512])) -> (s32[], bf16[16,256], bf16[3,256,512]) {
  %state = (s32[]{:T(128)}, bf16[16,256]{1,0:T(8,128)(2,1)}, bf16[3,256,512]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = bf16[16,256]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %w = bf16[3,256,512]{2,1,0:T(8,128)(2,1)} get-tuple-element(%state), index=2
  %y = bf16[16,512]{1,0:T(8,128)(2,1)S(1)} fusion(%x, %w, %i), kind=kOutput, calls=%product
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  ROOT %out = (s32[]{:T(128)}, bf16[16,256]{1,0:T(8,128)(2,1)}, bf16[3,256,512]{2,1,0:T(8,128)(2,1)}) tuple(%next, %x, %w)
}

%condition (state: (s32[], bf16[16,256], bf16[3,256,512])) -> pred[] {
  %state = (s32[]{:T(128)}, bf16[16,256]{1,0:T(8,128)(2,1)}, /*index=2*/bf16[3,256,512]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %most = s32[]{:T(128)} constant(LIMIT)
  ROOT %more = pred[]{:T(512)} compare(%i, %most), direction=LT
}

ENTRY %main (x: bf16[16,256], w: bf16[3,256,512], g: f32[8,128]) -> f32[8,128] {
  %x = bf16[16,256]{1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[3,256,512]{2,1,0:T(8,128)(2,1)} parameter(1)
  %g = f32[8,128]{1,0:T(8,128)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  %start = s32[]{:T(128)} copy(%zero)
  %state = (s32[]{:T(128)}, bf16[16,256]{1,0:T(8,128)(2,1)}, bf16[3,256,512]{2,1,0:T(8,128)(2,1)}) tuple(%start, %x, %w)
  %loop = (s32[]{:T(128)}, bf16[16,256]{1,0:T(8,128)(2,1)}, bf16[3,256,512]{2,1,0:T(8,128)(2,1)}) while(%state), condition=%condition, body=%body
  ROOT %total = f32[8,128]{1,0:T(8,128)} all-reduce(%g), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add, metadata={op_name="jit(f)/psum"}
}
"""


def test_loop_body_is_multiplied_by_its_trip_count():
  module = parse(LOOP.replace('LIMIT', '3'))
  loop = module.entry.instructions['loop']
  assert module.trips(loop, module.entry) == 3
  cost = cost_of(module)
  counter = 3
  assert cost.flops == 3 * 2 * 16 * 256 * 512 + counter
  # Each trip reads the activations and its slice of the stack; what it makes
  # stays in VMEM. There are a few scalars.
  trip = 2 * 16 * 256 + 2 * 256 * 512 + 4 * 4
  assert cost.bytes == 3 * trip + 2 * 4 * 8 * 128 + 2 * 4
  assert cost.searches == 0


@pytest.mark.parametrize(
  ('next_', 'trips'),
  [
    ('add(%i, %constant.two)', 2),
    ('fusion(%i), kind=kLoop, calls=%two_more', 2),
    ('multiply(%i, %one)', None),
  ],
)
def test_trip_count_of_counters_with_larger_steps(next_, trips):
  text = LOOP.replace('LIMIT', '3').replace('add(%i, %one)', next_)
  text = text.replace(
    '  %one = s32[]{:T(128)} constant(1)\n',
    '  %one = s32[]{:T(128)} constant(1)\n'
    '  %constant.two = s32[]{:T(128)} constant(2)\n',
  )
  module = parse(
    text
    + """
%two_more (j: s32[]) -> s32[] {
  %j = s32[]{:T(128)} parameter(0)
  %two = s32[]{:T(128)} constant(2)
  ROOT %k = s32[]{:T(128)} add(%j, %two)
}
"""
  )
  loop = module.entry.instructions['loop']
  assert module.trips(loop, module.entry) == trips


def test_loop_of_unknown_length_is_reported():
  text = LOOP.replace('LIMIT', '3').replace('direction=LT', 'direction=NE')
  cost = cost_of(parse(text))
  assert cost.searches == 1
  assert cost.flops == pytest.approx(
    SEARCH_TRIPS * 2 * 16 * 256 * 512, rel=1e-3
  )


def test_trip_count_that_the_scope_states():
  """Of the innermost scope, and only of the loop itself."""
  text = LOOP.replace('LIMIT', '3').replace('direction=LT', 'direction=NE')
  stated = (
    '), metadata={op_name="jit(f)/about_7_trips/about_5_trips/while"}, cond'
  )
  cost = cost_of(parse(text.replace('), cond', stated)))
  assert cost.searches == 0
  assert cost.flops == pytest.approx(5 * 2 * 16 * 256 * 512, rel=1e-3)
  outside = stated.replace('about_5_trips', 'layers')
  assert cost_of(parse(text.replace('), cond', outside))).searches == 1


def test_omitted_scopes_do_not_count():
  text = CONDITIONAL.replace('/option/', '/responses/option/')
  scopes = Scopes(omitted=frozenset(['responses']))
  assert cost_of(parse(text), scopes=scopes).flops == 0


def test_trip_count_of_a_condition_that_is_a_fusion():
  """As on GPUs."""
  text = LOOP.replace('LIMIT', '3').replace(
    'pred[]{:T(512)} compare(%i, %most), direction=LT',
    'pred[]{:T(512)} fusion(%i), kind=kLoop, calls=%less',
  )
  module = parse(
    text
    + """
%less (j: s32[]) -> pred[] {
  %most.1 = s32[]{:T(128)} constant(3)
  %j = s32[]{:T(128)} parameter(0)
  ROOT %k = pred[]{:T(512)} compare(%j, %most.1), direction=LT
}
"""
  )
  assert module.trips(module.entry.instructions['loop'], module.entry) == 3


CONDITIONAL = """HloModule chosen, is_scheduled=true

%cheap (a: f32[8,128]) -> f32[8,128] {
  ROOT %a = f32[8,128]{1,0:T(8,128)} parameter(0)
}

%dear (b: f32[8,128]) -> f32[8,128] {
  %b = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %c = f32[8,128]{1,0:T(8,128)} add(%b, %b)
}

ENTRY %main (p: pred[], x: f32[8,128]) -> f32[8,128] {
  %p = pred[]{:T(512)} parameter(0)
  %x = f32[8,128]{1,0:T(8,128)} parameter(1)
  ROOT %either = f32[8,128]{1,0:T(8,128)} conditional(%p, %x, %x), branch_computations={%cheap, %dear}, metadata={op_name="jit(f)/option/cond"}
}
"""


def test_of_a_conditional_the_most_expensive_branch_counts():
  module = parse(CONDITIONAL)
  assert cost_of(module).flops == 8 * 128
  assert cost_of(module, scopes=Scopes(frozenset(['opt']))).flops == 8 * 128


def test_of_an_unused_option_the_cheapest_branch_counts():
  scopes = Scopes(unused=frozenset(['option']))
  cost = cost_of(parse(CONDITIONAL), scopes=scopes)
  assert cost.flops == 0


def test_all_reduce_sends_each_part_twice():
  cost = cost_of(parse(LOOP.replace('LIMIT', '3')))
  [(collective, times)] = cost.collectives
  assert (collective.kind, times) == ('all-reduce', 1)
  assert collective.size == 4 * 8 * 128
  assert collective.sent == 2 * 3 / 4 * 4 * 8 * 128
  assert collective.groups == ((0, 1, 2, 3),)
  assert collective.scope == 'jit(f)/psum'


def lines(*instructions):
  body = '\n'.join(f'  {line}' for line in instructions)
  return parse(f'ENTRY %main (x: f32[]) -> f32[] {{\n{body}\n}}')


CONVOLUTIONS = [
  # A plain product, and its transposes.
  ('[16,256]', '[256,512]', '[16,512]', 'dim_labels=bf_io->bf', 16 * 256 * 512),
  ('[16,256]', '[512,256]', '[16,512]', 'dim_labels=bf_oi->bf', 16 * 256 * 512),
  ('[256,16]', '[256,512]', '[16,512]', 'dim_labels=fb_io->bf', 16 * 256 * 512),
  # Heads as a spatial axis that the input has once: each is met once.
  (
    '[1024,3584,1]',
    '[3584,28,128]',
    '[1024,28,128]',
    'window={size=28 pad=27_27 rhs_reversal=1}, dim_labels=bf0_i0o->b0f',
    1024 * 3584 * 28 * 128,
  ),
  # Heads summed over.
  (
    '[1024,28,128]',
    '[28,128,3584]',
    '[1024,3584,1]',
    'window={size=28}, dim_labels=b0f_0io->bf0',
    1024 * 3584 * 28 * 128,
  ),
  # A batch of products as an axis with gaps.
  (
    '[4,7168,1024]',
    '[4,1024,128]',
    '[4,7168,128]',
    'window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0io->0bf',
    4 * 7168 * 1024 * 128,
  ),
]


@pytest.mark.parametrize(
  ('left', 'right', 'out', 'how', 'products'), CONVOLUTIONS
)
def test_convolution_flops(left, right, out, how, products):
  module = lines(
    f'%l = bf16{left} parameter(0)',
    f'%r = bf16{right} parameter(1)',
    f'ROOT %y = bf16{out} convolution(%l, %r), {how}',
  )
  assert cost_of(module).flops == 2 * products


def test_dot_flops():
  module = lines(
    '%l = f32[4,8,16]{2,1,0} parameter(0)',
    '%r = f32[4,16,32]{2,1,0} parameter(1)',
    'ROOT %y = f32[4,8,32]{2,1,0} dot(%l, %r), lhs_batch_dims={0}, '
    'lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}',
  )
  assert cost_of(module).flops == 2 * 4 * 8 * 16 * 32


def test_parses_instructions_that_span_lines():
  module = lines(
    '%x = f32[8,128]{1,0:T(8,128)} parameter(0)',
    '%mine = f32[8,128]{1,0:T(8,128)} custom-call(%x), frontend_attributes={'
    'kernel_metadata={\n"blocks":"{\\"q\\": 1}"\n}}, '
    'metadata={op_name="here"}',
    'ROOT %y = f32[8,128]{1,0:T(8,128)} negate(%mine)',
  )
  assert list(module.entry.instructions) == ['x', 'mine', 'y']
  assert module.entry.instructions['mine'].scope == 'here'


def test_in_place_update_writes_only_the_update():
  module = parse("""
%update (stack: f32[64,8,128], new: f32[1,8,128], i: s32[]) -> f32[64,8,128] {
  %stack = f32[64,8,128]{2,1,0:T(8,128)} parameter(0)
  %new = f32[1,8,128]{2,1,0:T(8,128)} parameter(1)
  %i = s32[]{:T(128)} parameter(2)
  ROOT %out = f32[64,8,128]{2,1,0:T(8,128)} dynamic-update-slice(%stack, %new, %i, %i, %i)
}
ENTRY %main (stack: f32[64,8,128], new: f32[1,8,128], i: s32[]) -> f32[64,8,128] {
  %stack = f32[64,8,128]{2,1,0:T(8,128)} parameter(0)
  %new = f32[1,8,128]{2,1,0:T(8,128)} parameter(1)
  %i = s32[]{:T(128)S(6)} parameter(2)
  ROOT %out = f32[64,8,128]{2,1,0:T(8,128)} fusion(%stack, %new, %i), kind=kLoop, calls=%update
}
""")
  assert cost_of(module).bytes == 2 * 4 * 8 * 128


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
  [found] = collectives_in(module, module.entry.root)
  assert found.kind == 'reduce-scatter'
  assert found.sent == 3 / 4 * 2 * 32 * 128


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
def test_bytes_sent_by_collectives(operation, sent):
  module = lines('%x = f32[8] parameter(0)', f'ROOT %y = {operation}')
  [found] = collectives_in(module, module.entry.root)
  assert found.sent == sent


def test_transfers_between_slices():
  attributes = (
    'is_host_transfer=true, frontend_attributes={'
    '_xla_host_transfer_handler_name="xla_megascale_runtime",'
    '_xla_megascale_target="{1,2,3}x{0:7}",'
    '_xla_megascale_transfer_type="ALL_REDUCE"}'
  )
  module = lines(
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
  [(found, times)] = cost.collectives
  assert (found.kind, found.network, times) == ('all-reduce', 'dcn', 1)
  assert found.groups == ((1, 2, 3),)
  assert found.sent == 2 * 2 / 3 * 4 * 8 * 128
  assert cost.bytes == 2 * 4 * 8 * 128
  assert cost.flops == 0


def test_groups_along_mesh_axes():
  text = (
    "replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) "
    "{'axis_0'}, use_global_device_ids=true"
  )
  assert groups_of(text) == ((0, 1, 2, 3), (4, 5, 6, 7))
  both = text.replace("{'axis_0'}", "{'axis_0','axis_1'}")
  assert groups_of(both) == ((0, 4, 1, 5, 2, 6, 3, 7),)
  part = "replica_groups=mesh['a'=8] {'a':(2)2}"
  assert groups_of(part) == ((0, 2), (1, 3), (4, 6), (5, 7))


def test_padded_sizes_of_shapes():
  found = list(shapes_of('(bf16[3,5]{0,1:T(8,128)(2,1)S(1)}, u32[]{:S(2)})'))
  assert found[0] == Shape('bf16', (3, 5), (0, 1), (8, 128), 'vmem')
  assert (found[0].size, found[0].padded_size) == (30, 8 * 128 * 2)
  assert found[1].space == 'other'
  assert next(shapes_of('pred[7]{0}')).size == 7
  assert next(shapes_of('f32[2]{0:T(128)S(5)}')).space == 'host'


# More than its arguments, or a part of them.
@pytest.mark.parametrize('moved', [99999, 99])
def test_kernels_with_a_stated_cost(moved):
  module = lines(
    '%x = f32[8,128]{1,0:T(8,128)} parameter(0)',
    'ROOT %mine = f32[8,128]{1,0:T(8,128)} custom-call(%x), '
    'custom_call_target="tpu_custom_call", backend_config={"custom_call_config"'
    ':{"cost_estimate":{"flops":"12","transcendentals":"1",'
    f'"bytes_accessed":"{moved}"'
    '}}}',
  )
  cost = cost_of(module)
  assert (cost.flops, cost.bytes, cost.unknown) == (12, moved, set())


def test_kernels_without_a_stated_cost():
  module = lines(
    '%x = f32[8,128]{1,0:T(8,128)} parameter(0)',
    'ROOT %theirs.3 = f32[8,128]{1,0:T(8,128)} custom-call(%x), '
    'custom_call_target="tpu_custom_call"',
  )
  cost = cost_of(module)
  assert (cost.flops, cost.bytes) == (0, 2 * 4 * 8 * 128)
  assert cost.unknown == {'theirs'}


@pytest.mark.parametrize(
  ('phase', 'products'), [('fwd', 2), ('dkv', 5), ('dq', 3)]
)
def test_splash_attention_counts_visible_blocks(phase, products):
  module = lines(
    '%n = s8[1,2,2] parameter(0)',
    '%q = bf16[3,28,1024,128] parameter(1)',
    '%k = bf16[3,4,1024,128] parameter(2)',
    f'ROOT %splash_mha_{phase}_segmented.1 = bf16[3,28,1024,128] custom-call('
    '%n, %q, %k), custom_call_target="tpu_custom_call", frontend_attributes='
    '{kernel_metadata={"xprof_metadata":"{\\"block_q\\": 512}"}}, '
    'metadata={op_name="jit(f)/window_0/splash"}',
  )
  kernel = kernel_of(module.entry.root, module.entry)
  assert kernel is not None
  visible = 3  # of four pairs of blocks
  size = 3 * 28 * visible * 512 * 512 * 128
  assert kernel.flops == 2 * products * size


def test_visible_blocks_of_a_window():
  for window in (1, 100, 128, 129, 300, 512, 2000):
    seen = {
      (q // 128, k // 128)
      for q in range(512)
      for k in range(q + 1)
      if q - k < window
    }
    assert blocks(512, 128, window) == len(seen)


def gpu_lines(*instructions):
  body = '\n'.join(f'  {line}' for line in instructions)
  return parse(f'ENTRY %main (x: f32[]) -> f32[] {{\n{body}\n}}', 'gpu')


@pytest.mark.parametrize('operand', ['%a', '%z'])
def test_scatter_in_place_moves_the_updates_only(operand):
  """On GPUs; unless the fusion makes the array that it writes to."""
  text = f"""
%fused (a: f32[1000,64], i: s32[8,1], b: f32[8,64]) -> f32[1000,64] {{
  %a = f32[1000,64]{{1,0}} parameter(0)
  %i = s32[8,1]{{1,0}} parameter(1)
  %b = f32[8,64]{{1,0}} parameter(2)
  %zero = f32[] constant(0)
  %z = f32[1000,64]{{1,0}} broadcast(%zero)
  ROOT %s = f32[1000,64]{{1,0}} scatter({operand}, %i, %b), to_apply=%last
}}

ENTRY %main (x: f32[1000,64], j: s32[8,1], y: f32[8,64]) -> f32[1000,64] {{
  %x = f32[1000,64]{{1,0}} parameter(0)
  %j = s32[8,1]{{1,0}} parameter(1)
  %y = f32[8,64]{{1,0}} parameter(2)
  ROOT %f = f32[1000,64]{{1,0}} fusion(%x, %j, %y), kind=kInput, calls=%fused
}}
"""
  updates, whole = 4 * 8 * 64, 4 * 1000 * 64
  written = updates if operand == '%a' else whole
  assert cost_of(parse(text, 'gpu')).bytes == 4 * 8 + updates + written


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
def test_asynchronous_collectives_of_gpus(operation, kind, sent):
  module = gpu_lines(
    '%x = f32[8]{0} parameter(0)',
    '%y = s32[8]{0} parameter(1)',
    f'%started = {operation}',
    f'ROOT %done = f32[8]{{0}} {kind}-done(%started)',
  )
  cost = cost_of(module)
  [(found, times)] = cost.collectives
  assert (found.kind, found.sent, times) == (kind, sent, 1)
  assert cost.flops == 0
  # Read and written once each; waiting for the end moves nothing.
  first = module.entry.instructions['started']
  read = 4 * 8 * len(first.operands)
  assert cost.bytes == read + sum(s.size for s in results(first))


def attention(target, mask, kv='bf16[3,256,2,64]'):
  return gpu_lines(
    '%q = bf16[3,256,4,64] parameter(0)',
    f'%k = {kv} parameter(1)',
    '%v = bf16[3,256,2,64] parameter(2)',
    'ROOT %o = (bf16[3,4,256,64], u8[0]) custom-call(%q, %k, %v), '
    f'custom_call_target="{target}", backend_config={{"intermediate_tensor_shape'
    '": {"element_type": "BF16", "dimensions": ["3", "4", "256", "256"], '
    '"tuple_shapes": []}, "sliding_window_length": 0, '
    f'"mask_type": "{mask}"}}',
  )


@pytest.mark.parametrize(
  ('target', 'products'),
  [
    ('__cudnn$fmhaSoftmax', 2),
    ('__cudnn$fmhaScaleBiasSoftmax', 2),
    ('__cudnn$fmhaSoftmaxBackward', 5),
  ],
)
@pytest.mark.parametrize(
  ('mask', 'blocks_'), [('NO_MASK', 4), ('CAUSAL', 3), ('PADDING_CAUSAL', 3)]
)
def test_cudnn_attention_counts_visible_blocks(target, products, mask, blocks_):
  cost = cost_of(attention(target, mask))
  pairs = blocks_ * 128 * 128
  assert cost.flops == 2 * products * 3 * 4 * pairs * 64
  assert cost.products == {('cuDNN attention', 'bf16'): cost.flops}
  # Queries, keys, values and the result; no scores.
  assert cost.bytes == 2 * 3 * 256 * 64 * (4 + 2 + 2 + 4)


def test_cublas_products():
  cost = cost_of(
    gpu_lines(
      '%x = bf16[5,16,32] parameter(0)',
      '%y = bf16[5,64,32] parameter(1)',
      'ROOT %z = (f32[5,16,64], s8[4096]) custom-call(%x, %y), '
      'custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_'
      'config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],'
      '"rhs_contracting_dimensions":["2"],"lhs_batch_dimensions":["0"],'
      '"rhs_batch_dimensions":["0"]}}}',
    )
  )
  assert cost.flops == 2 * 5 * 16 * 64 * 32
  assert cost.products == {('cuBLAS', 'bf16'): cost.flops}


@pytest.mark.parametrize(
  ('kind', 'precision', 'kernel', 'named'),
  [
    ('bf16', '', '__triton_nested_gemm_fusion', ('Triton', 'bf16')),
    ('f32', '', '__triton', ('Triton', 'f32')),
    (
      'f32',
      ', operand_precision={highest,highest}',
      '__triton',
      ('Triton', 'f32 highest'),
    ),
    ('f32', '', 'other', ('loops', 'f32')),
  ],
)
def test_products_are_named_by_kernel_and_type(kind, precision, kernel, named):
  module = parse(
    f"""
%product (x: {kind}[16,32], w: {kind}[32,8]) -> f32[16,8] {{
  %x = {kind}[16,32]{{1,0}} parameter(0)
  %w = {kind}[32,8]{{1,0}} parameter(1)
  ROOT %y = f32[16,8]{{1,0}} dot(%x, %w), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}{precision}
}}
ENTRY %main (x: {kind}[16,32], w: {kind}[32,8]) -> f32[16,8] {{
  %x = {kind}[16,32]{{1,0}} parameter(0)
  %w = {kind}[32,8]{{1,0}} parameter(1)
  ROOT %z = f32[16,8]{{1,0}} fusion(%x, %w), kind=kCustom, calls=%product, backend_config={{"fusion_backend_config":{{"kind":"{kernel}"}}}}
}}
""",
    'gpu',
  )
  assert cost_of(module).products == {named: 2 * 16 * 32 * 8}


def test_kernels_of_unknown_cost_are_named_on_gpus():
  cost = cost_of(
    gpu_lines(
      '%x = f32[8]{0} parameter(0)',
      'ROOT %mine.2 = f32[8]{0} custom-call(%x), '
      'custom_call_target="__gpu$xla.gpu.triton"',
    )
  )
  assert cost.unknown == {'mine'}


def test_registered_memory_of_gpus_is_device_memory():
  assert next(shapes_of('f32[2]{0:S(1)}', 'gpu')).space == 'hbm'
  assert next(shapes_of('f32[2]{0:S(5)}', 'gpu')).space == 'host'
