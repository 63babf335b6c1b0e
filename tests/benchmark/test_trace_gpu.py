"""benchmarks/trace_gpu.py counts what compiled operations compute and move, from their text."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from atonet_jax.models.counts import count_conv_macs
from benchmarks import trace_gpu
from benchmarks.compiled_text import Operations
from benchmarks.trace_gpu import category

# As XLA prints programs for a GPU; a 3x3 convolution from 16 to 32 channels on 8x10 pixels and its gradients.
TEXT = """HloModule jit_step, entry_computation_layout={(bf16[2,8,10,16]{3,2,1,0})->f32[]}

%fused_dot (param_0: bf16[160,16], param_1: bf16[16,4]) -> f32[160,4] {
  %param_0 = bf16[160,16]{1,0} parameter(0)
  %param_1 = bf16[16,4]{1,0} parameter(1)
  ROOT %dot.2 = f32[160,4]{1,0} dot(%param_0, %param_1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (x: bf16[2,8,10,16]) -> f32[] {
  %x = bf16[2,8,10,16]{3,2,1,0} parameter(0)
  %k = bf16[32,3,3,16]{3,2,1,0} parameter(1)
  %dy = bf16[2,8,10,32]{3,2,1,0} parameter(2)
  %conv.1 = (bf16[2,8,10,32]{3,2,1,0}, u8[0]{0}) custom-call(%x, %k), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward", metadata={op_name="jit(step)/jvp(ATONet)/layer1/conv1/conv_general_dilated"}
  %conv.2 = (bf16[2,8,10,16]{3,2,1,0}, u8[0]{0}) custom-call(%dy, %k), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput", metadata={op_name="jit(step)/transpose(jvp(ATONet))/layer1/conv1/conv_general_dilated"}
  %conv.3 = (bf16[32,3,3,16]{3,2,1,0}, u8[0]{0}) custom-call(bf16[2,8,10,16]{3,2,1,0} %x, bf16[2,8,10,32]{3,2,1,0} %dy), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
  %a = bf16[160,16]{1,0} bitcast(%x)
  %b = bf16[16,4]{1,0} parameter(3)
  %gemm = (f32[160,4]{1,0}, s8[64]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %fusion = f32[160,4]{1,0} fusion(%a, %b), kind=kCustom, calls=%fused_dot
  ROOT %input_reduce_fusion = f32[] reduce(%gemm), to_apply=%fused_dot
}
"""  # noqa: E501
CONV = 2 * (2 * 8 * 10 * 32) * (3 * 3 * 16)


@pytest.fixture
def operations():
    return Operations(TEXT)


def test_convolutions_and_their_gradients_compute_the_same(operations):
    assert [operations.flops(f'conv.{i}') for i in (1, 2, 3)] == [CONV] * 3


def test_matrix_products_count_in_fusions_too(operations):
    assert operations.flops('gemm') == operations.flops('fusion') == 2 * 160 * 4 * 16
    assert operations.flops('a') == 0


def test_bytes_are_of_operands_and_results(operations):
    assert operations.bytes('conv.1') == 2 * (2 * 8 * 10 * (16 + 32) + 32 * 3 * 3 * 16)


def test_rows_say_what_an_operation_is_and_where_it_came_from(operations):
    assert operations.kind('conv.2') == 'custom-call bf16[2, 8, 10, 16]'
    assert operations.origin('conv.1') == 'layer1/conv1/conv_general_dilated'
    assert operations.origin('conv.2') == 'grad layer1/conv1/conv_general_dilated'
    line = operations.text('conv.1')
    assert category('conv.1', 'sm90_xmma_fprop_implicit_gemm', line, CONV) == 'convolution'
    assert category('conv.1', 'void cudnn::ops::nchwToNhwcKernel', line, 0) == 'transpose, copy'
    assert category('gemm', 'nvjet_tst_128x64', operations.text('gemm'), 1) == 'matrix product'
    assert category('input_reduce_fusion', 'input_reduce_fusion', '', 0) == 'fusion with a reduction'


def test_a_compiled_program_counts_what_its_source_does():
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

    arguments = jnp.ones((1, 9, 9, 3)), jnp.ones((3, 3, 3, 8))
    operations = Operations(jax.jit(convolve).lower(*arguments).compile().as_text())
    assert sum(map(operations.flops, operations.entry)) == 2 * count_conv_macs(convolve, *arguments)


def test_a_program_is_traced_from_end_to_end(tmp_path, capsys):
    trace_gpu.main(['--out', str(tmp_path), '--tiny', '--programs', 'coarse_logits'])
    figures = json.loads((tmp_path / 'kernels.json').read_text())['programs']['coarse_logits']
    assert figures['ms_by_the_clock'] > 0 and figures['gflop_of_convolutions'] > 0
    assert sum(row['gflop'] for row in figures['kernels']) > 0 and gzip.open(tmp_path / 'coarse_logits.hlo.gz').read()
    assert '| category | ms | % |' in capsys.readouterr().out

    trace_gpu.main(['--out', str(tmp_path), '--tiny', '--programs', 'train', '--minutes', '0'])
    assert 'train was not begun: 0 minutes are over' in capsys.readouterr().out
