# SPDX-License-Identifier: Apache-2.0
"""Parsing of HLO and cost analysis, compared with counts by hand."""

import pytest
from compile.hlo_text import parse_lines

from covrl.compile.cost import ASSUMED_TRIPS, Scopes, cost_of
from covrl.compile.hlo import Shape, parse, shapes_of

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
  assert module.trip_count(loop, module.entry) == 3
  cost = cost_of(module)
  counter_flops = 3
  assert cost.flops == 3 * 2 * 16 * 256 * 512 + counter_flops
  # Each trip reads the activations and its slice of the stack; its result
  # stays in VMEM. A few scalars are added.
  bytes_per_trip = 2 * 16 * 256 + 2 * 256 * 512 + 4 * 4
  assert cost.bytes == 3 * bytes_per_trip + 2 * 4 * 8 * 128 + 2 * 4
  assert cost.assumed_loops == 0


@pytest.mark.parametrize(
  ('increment', 'trips'),
  [
    ('add(%i, %constant.two)', 2),
    ('fusion(%i), kind=kLoop, calls=%two_more', 2),
    ('multiply(%i, %one)', None),
  ],
)
def test_reads_trip_counts_of_counters_with_larger_steps(increment, trips):
  text = LOOP.replace('LIMIT', '3').replace('add(%i, %one)', increment)
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
  assert module.trip_count(loop, module.entry) == trips


def test_loop_of_unknown_length_is_reported():
  text = LOOP.replace('LIMIT', '3').replace('direction=LT', 'direction=NE')
  cost = cost_of(parse(text))
  assert cost.assumed_loops == 1
  assert cost.flops == pytest.approx(
    ASSUMED_TRIPS * 2 * 16 * 256 * 512, rel=1e-3
  )


def test_trip_count_is_the_one_that_the_innermost_scope_states():
  """The innermost `about_N_trips` counts, if the loop is directly in it."""
  text = LOOP.replace('LIMIT', '3').replace('direction=LT', 'direction=NE')
  metadata = (
    '), metadata={op_name="jit(f)/about_7_trips/about_5_trips/while"}, cond'
  )
  cost = cost_of(parse(text.replace('), cond', metadata)))
  assert cost.assumed_loops == 0
  assert cost.flops == pytest.approx(5 * 2 * 16 * 256 * 512, rel=1e-3)
  outside = metadata.replace('about_5_trips', 'layers')
  assert cost_of(parse(text.replace('), cond', outside))).assumed_loops == 1


def test_omitted_scopes_do_not_count():
  text = CONDITIONAL.replace('/option/', '/responses/option/')
  scopes = Scopes(omitted=frozenset(['responses']))
  assert cost_of(parse(text), scopes=scopes).flops == 0


def test_reads_trip_counts_from_a_fused_condition():
  """XLA fuses the condition on GPUs."""
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
  assert module.trip_count(module.entry.instructions['loop'], module.entry) == 3


CONDITIONAL = """HloModule chosen, is_scheduled=true

%cheap (a: f32[8,128]) -> f32[8,128] {
  ROOT %a = f32[8,128]{1,0:T(8,128)} parameter(0)
}

%expensive (b: f32[8,128]) -> f32[8,128] {
  %b = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %c = f32[8,128]{1,0:T(8,128)} add(%b, %b)
}

ENTRY %main (p: pred[], x: f32[8,128]) -> f32[8,128] {
  %p = pred[]{:T(512)} parameter(0)
  %x = f32[8,128]{1,0:T(8,128)} parameter(1)
  ROOT %either = f32[8,128]{1,0:T(8,128)} conditional(%p, %x, %x), branch_computations={%cheap, %expensive}, metadata={op_name="jit(f)/option/cond"}
}
"""


def test_cost_of_a_conditional_is_that_of_its_most_expensive_branch():
  module = parse(CONDITIONAL)
  assert cost_of(module).flops == 8 * 128
  assert cost_of(module, scopes=Scopes(frozenset(['opt']))).flops == 8 * 128


def test_cost_of_an_unused_option_is_that_of_its_cheapest_branch():
  scopes = Scopes(unused=frozenset(['option']))
  cost = cost_of(parse(CONDITIONAL), scopes=scopes)
  assert cost.flops == 0


def test_all_reduce_sends_each_part_twice():
  cost = cost_of(parse(LOOP.replace('LIMIT', '3')))
  [(collective, count)] = cost.collectives
  assert (collective.kind, count) == ('all-reduce', 1)
  assert collective.size == 4 * 8 * 128
  assert collective.sent_bytes == 2 * 3 / 4 * 4 * 8 * 128
  assert collective.groups == ((0, 1, 2, 3),)
  assert collective.scope == 'jit(f)/psum'


CONVOLUTIONS = [
  # A plain product, and its transposes.
  ('[16,256]', '[256,512]', '[16,512]', 'dim_labels=bf_io->bf', 16 * 256 * 512),
  ('[16,256]', '[512,256]', '[16,512]', 'dim_labels=bf_oi->bf', 16 * 256 * 512),
  ('[256,16]', '[256,512]', '[16,512]', 'dim_labels=fb_io->bf', 16 * 256 * 512),
  # Heads as a spatial axis of size one in the input: each is multiplied once.
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
  ('lhs', 'rhs', 'result', 'attributes', 'products'), CONVOLUTIONS
)
def test_flops_of_convolutions_equal_counts_by_hand(
  lhs, rhs, result, attributes, products
):
  module = parse_lines(
    f'%l = bf16{lhs} parameter(0)',
    f'%r = bf16{rhs} parameter(1)',
    f'ROOT %y = bf16{result} convolution(%l, %r), {attributes}',
  )
  assert cost_of(module).flops == 2 * products


def test_flops_of_a_dot_are_two_per_product():
  module = parse_lines(
    '%l = f32[4,8,16]{2,1,0} parameter(0)',
    '%r = f32[4,16,32]{2,1,0} parameter(1)',
    'ROOT %y = f32[4,8,32]{2,1,0} dot(%l, %r), lhs_batch_dims={0}, '
    'lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}',
  )
  assert cost_of(module).flops == 2 * 4 * 8 * 16 * 32


def test_parses_instructions_that_span_lines():
  module = parse_lines(
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


@pytest.mark.parametrize(
  ('instruction', 'bytes_read'),
  [
    # A fusion within the fusion changes the shape only; the product reads all.
    ('negate(%same)', 4 * 64 * 8 * 128),
    # Of the stack, one entry.
    (
      'dynamic-slice(%same, %i, %i, %i), dynamic_slice_sizes={1,8,128}',
      4 * 8 * 128,
    ),
  ],
)
def test_values_that_a_nested_fusion_returns_unread_count_where_they_are_used(
  instruction, bytes_read
):
  module = parse(f"""
%shape (s: f32[64,8,128]) -> f32[64,8,128] {{
  %s = f32[64,8,128]{{2,1,0:T(8,128)}} parameter(0)
  ROOT %b = f32[64,8,128]{{2,1,0:T(8,128)}} bitcast(%s)
}}
%outer (stack: f32[64,8,128], i: s32[]) -> f32[8,128] {{
  %stack = f32[64,8,128]{{2,1,0:T(8,128)}} parameter(0)
  %i = s32[]{{:T(128)}} parameter(1)
  %same = f32[64,8,128]{{2,1,0:T(8,128)}} fusion(%stack), calls=%shape
  %part = f32[1,8,128]{{2,1,0:T(8,128)}} {instruction}
  ROOT %out = f32[8,128]{{1,0:T(8,128)}} bitcast(%part)
}}
ENTRY %main (stack: f32[64,8,128], i: s32[]) -> f32[8,128] {{
  %stack = f32[64,8,128]{{2,1,0:T(8,128)}} parameter(0)
  %i = s32[]{{:T(128)S(6)}} parameter(1)
  ROOT %y = f32[8,128]{{1,0:T(8,128)}} fusion(%stack, %i), calls=%outer
}}
""")
  assert cost_of(module).bytes == bytes_read + 4 * 8 * 128


def test_shapes_have_padded_sizes_and_memory_spaces():
  shapes = list(shapes_of('(bf16[3,5]{0,1:T(8,128)(2,1)S(1)}, u32[]{:S(2)})'))
  assert shapes[0] == Shape('bf16', (3, 5), (0, 1), (8, 128), 'vmem')
  assert (shapes[0].size, shapes[0].padded_size) == (30, 8 * 128 * 2)
  assert shapes[1].space == 'other'
  assert next(shapes_of('pred[7]{0}')).size == 7
  assert next(shapes_of('f32[2]{0:T(128)S(5)}')).space == 'host'


@pytest.mark.parametrize('operand', ['%a', '%z'])
def test_scatter_in_place_moves_the_updates_only(operand):
  """On GPUs the whole array moves if the fusion itself creates it."""
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
  update_bytes, array_bytes = 4 * 8 * 64, 4 * 1000 * 64
  written_bytes = update_bytes if operand == '%a' else array_bytes
  assert (
    cost_of(parse(text, 'gpu')).bytes == 4 * 8 + update_bytes + written_bytes
  )


def test_registered_memory_of_gpus_is_device_memory():
  assert next(shapes_of('f32[2]{0:S(1)}', 'gpu')).space == 'hbm'
  assert next(shapes_of('f32[2]{0:S(5)}', 'gpu')).space == 'host'
