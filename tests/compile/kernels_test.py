# SPDX-License-Identifier: Apache-2.0
"""Operations and traffic of kernels in HLO, compared with counts by hand."""

import pytest
from compile.hlo_text import parse_gpu_lines, parse_lines

from covrl.compile.cost import cost_of
from covrl.compile.hlo import parse
from covrl.compile.kernels import pallas_kernel_cost, visible_block_pairs


# More and fewer bytes than the arguments have.
@pytest.mark.parametrize('stated_bytes', [99999, 99])
def test_kernels_with_a_stated_cost_have_that_cost(stated_bytes):
  module = parse_lines(
    '%x = f32[8,128]{1,0:T(8,128)} parameter(0)',
    'ROOT %own_kernel = f32[8,128]{1,0:T(8,128)} custom-call(%x), '
    'custom_call_target="tpu_custom_call", backend_config={"custom_call_config"'
    ':{"cost_estimate":{"flops":"12","transcendentals":"1",'
    f'"bytes_accessed":"{stated_bytes}"'
    '}}}',
  )
  cost = cost_of(module)
  assert (cost.flops, cost.bytes, cost.unknown_kernels) == (
    12,
    stated_bytes,
    set(),
  )


def test_kernels_without_a_stated_cost_are_unknown():
  module = parse_lines(
    '%x = f32[8,128]{1,0:T(8,128)} parameter(0)',
    'ROOT %other_kernel.3 = f32[8,128]{1,0:T(8,128)} custom-call(%x), '
    'custom_call_target="tpu_custom_call"',
  )
  cost = cost_of(module)
  assert (cost.flops, cost.bytes) == (0, 2 * 4 * 8 * 128)
  assert cost.unknown_kernels == {'other_kernel'}


@pytest.mark.parametrize(
  ('phase', 'products'), [('fwd', 2), ('dkv', 5), ('dq', 3)]
)
def test_splash_attention_counts_visible_blocks(phase, products):
  module = parse_lines(
    '%n = s8[1,2,2] parameter(0)',
    '%q = bf16[3,28,1024,128] parameter(1)',
    '%k = bf16[3,4,1024,128] parameter(2)',
    f'ROOT %splash_mha_{phase}_segmented.1 = bf16[3,28,1024,128] custom-call('
    '%n, %q, %k), custom_call_target="tpu_custom_call", frontend_attributes='
    '{kernel_metadata={"xprof_metadata":"{\\"block_q\\": 512}"}}, '
    'metadata={op_name="jit(f)/window_0/splash"}',
  )
  kernel = pallas_kernel_cost(module.entry.root, module.entry)
  assert kernel is not None
  visible = 3  # of four pairs of blocks
  size = 3 * 28 * visible * 512 * 512 * 128
  assert kernel.flops == 2 * products * size


def test_visible_blocks_of_a_window_equal_a_count_by_hand():
  for window in (1, 100, 128, 129, 300, 512, 2000):
    visible = {
      (q // 128, k // 128)
      for q in range(512)
      for k in range(q + 1)
      if q - k < window
    }
    assert visible_block_pairs(512, 128, window) == len(visible)


def attention(target, mask, kv='bf16[3,256,2,64]'):
  """Parses a call of cuDNN's attention."""
  return parse_gpu_lines(
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
  ('mask', 'visible_blocks'),
  [('NO_MASK', 4), ('CAUSAL', 3), ('PADDING_CAUSAL', 3)],
)
def test_cudnn_attention_counts_visible_blocks(
  target, products, mask, visible_blocks
):
  cost = cost_of(attention(target, mask))
  pairs = visible_blocks * 128 * 128
  assert cost.flops == 2 * products * 3 * 4 * pairs * 64
  assert cost.products == {('cuDNN attention', 'bf16'): cost.flops}
  # Queries, keys, values and the result; no scores.
  assert cost.bytes == 2 * 3 * 256 * 64 * (4 + 2 + 2 + 4)


def test_cublas_products_count_two_operations_per_multiplication():
  cost = cost_of(
    parse_gpu_lines(
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
  ('dtype', 'precision', 'kernel', 'named'),
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
def test_products_are_named_by_kernel_and_type(dtype, precision, kernel, named):
  module = parse(
    f"""
%product (x: {dtype}[16,32], w: {dtype}[32,8]) -> f32[16,8] {{
  %x = {dtype}[16,32]{{1,0}} parameter(0)
  %w = {dtype}[32,8]{{1,0}} parameter(1)
  ROOT %y = f32[16,8]{{1,0}} dot(%x, %w), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}{precision}
}}
ENTRY %main (x: {dtype}[16,32], w: {dtype}[32,8]) -> f32[16,8] {{
  %x = {dtype}[16,32]{{1,0}} parameter(0)
  %w = {dtype}[32,8]{{1,0}} parameter(1)
  ROOT %z = f32[16,8]{{1,0}} fusion(%x, %w), kind=kCustom, calls=%product, backend_config={{"fusion_backend_config":{{"kind":"{kernel}"}}}}
}}
""",
    'gpu',
  )
  assert cost_of(module).products == {named: 2 * 16 * 32 * 8}


def test_kernels_of_unknown_cost_are_named_on_gpus():
  cost = cost_of(
    parse_gpu_lines(
      '%x = f32[8]{0} parameter(0)',
      'ROOT %own_kernel.2 = f32[8]{0} custom-call(%x), '
      'custom_call_target="__gpu$xla.gpu.triton"',
    )
  )
  assert cost.unknown_kernels == {'own_kernel'}
