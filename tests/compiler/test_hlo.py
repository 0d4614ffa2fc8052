"""Costs read from compiled programs, against bytes and FLOPs counted by hand."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from pinjax.compiler import hlo
from pinjax.distributed import sharding

DEVICES = 8
F32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh()


def cost_of(mesh, function, in_specs, out_specs, *shapes):
    mapped = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)
    lowered = jax.jit(mapped).lower(*(F32(shape) for shape in shapes))
    return hlo.cost(lowered.compile().as_text())


@pytest.mark.parametrize(
    ("kind", "function", "out_spec", "sent"),
    [
        # Of 16 x 4 float32 on each device a ring sends:
        ("all-reduce", lambda x: lax.psum(x, "data"), P(), 2 * 7 / 8 * 256),
        ("all-gather", lambda x: lax.all_gather(x, "data"), P("data"), 7 * 256),
        (
            "reduce-scatter",
            lambda x: lax.psum_scatter(x, "data", tiled=True),
            P("data"),
            7 / 8 * 256,
        ),
        (
            "all-to-all",
            lambda x: lax.all_to_all(x, "data", 0, 0, tiled=True),
            P("data"),
            7 / 8 * 256,
        ),
        (
            "collective-permute",
            lambda x: lax.ppermute(x, "data", [(i, (i + 1) % 8) for i in range(8)]),
            P("data"),
            256,
        ),
    ],
)
def test_each_collective_sends_what_a_ring_sends(mesh, kind, function, out_spec, sent):
    cost = cost_of(mesh, function, P("data"), out_spec, (16 * DEVICES, 4))
    (found,) = cost.collectives
    assert (found.kind, found.count) == (kind, 1)
    assert found.sent == pytest.approx(sent)
    assert cost.flops == 0


def test_a_scan_counts_as_often_as_it_runs(mesh):
    """Five steps, with a product on each device and its sum over all devices."""

    def function(x, weights):
        def body(x, w):
            return lax.pcast(lax.psum(x @ w, "data"), "data", to="varying"), None

        return lax.scan(body, x, weights)[0]

    cost = cost_of(mesh, function, (P("data"), P()), P("data"), (4 * DEVICES, 32), (5, 32, 32))
    (found,) = cost.collectives
    assert (found.kind, found.count) == ("all-reduce", 5)
    assert found.sent == pytest.approx(5 * 2 * 7 / 8 * 4 * 32 * 4)
    assert cost.flops == 5 * 2 * 4 * 32 * 32
    assert cost.unknown_loops == 0


def test_a_loop_of_unknown_length_is_left_out_and_told():
    def function(x, w):
        return lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ w, x)

    lowered = jax.jit(function).lower(F32((8, 8)), F32((8, 8)))
    cost = hlo.cost(lowered.compile().as_text())
    assert cost.unknown_loops == 1
    assert cost.flops == 0


def test_of_a_conditional_the_cheaper_branch_counts():
    def function(x):
        return lax.cond(x[0, 0] > 0, lambda x: x @ x + x, lambda x: x, x)

    cost = hlo.cost(jax.jit(function).lower(F32((256, 256))).compile().as_text())
    assert cost.flops == 0
    assert cost.bytes < 3 * 256 * 256 * 4  # at most a copy


def test_groups_of_a_mesh_of_two_axes():
    """A sum over one of two axes is only among that axis' devices."""
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    cost = cost_of(mesh, lambda x: lax.psum(x, "model"), P("data", "model"), P("data"), (4, 32))
    (found,) = cost.collectives
    assert found.sent == pytest.approx(2 * 3 / 4 * 2 * 8 * 4)


def test_without_loops_it_agrees_with_xla():
    def function(x, w, v):
        return jnp.einsum("bij,jk->bik", jax.nn.relu(x), w) @ v

    lowered = jax.jit(function).lower(F32((4, 64, 128)), F32((128, 64)), F32((64, 32)))
    compiled = lowered.compile()
    cost, expected = hlo.cost(compiled.as_text()), compiled.cost_analysis()
    assert cost.flops == 2 * 4 * 64 * 128 * 64 + 2 * 4 * 64 * 64 * 32
    assert cost.flops == pytest.approx(expected["flops"], rel=0.02)
    assert cost.bytes == pytest.approx(expected["bytes accessed"], rel=0.2)


# As the TPU compiler writes: products as convolutions, layouts with tiles and memory spaces, loops
# without their trip count, a collective that several fusions share, and several on one channel.
TPU = """\
HloModule jit_f, is_scheduled=true, num_partitions=16

%body (p: (s32[], bf16[128,768])) -> (s32[], bf16[128,768]) {
  %p = (s32[]{:T(128)}, bf16[128,768]{1,0:T(8,128)(2,1)}) parameter(0)
  %one = s32[]{:T(128)} constant(1)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = bf16[128,768]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %next = s32[]{:T(128)} add(%i, %one)
  %product = bf16[128,768]{1,0:T(8,128)(2,1)S(1)} fusion(%x), kind=kOutput, calls=%fused
  %sum = bf16[128,768]{1,0:T(8,128)(2,1)} all-reduce(%product), channel_id=7, \
replica_groups=[1,16]<=[16], to_apply=%add, metadata={op_name="jit(f)/while/add"}
  ROOT %t = (s32[]{:T(128)}, bf16[128,768]{1,0:T(8,128)(2,1)}) tuple(%next, %sum)
}

%fused (q: bf16[128,768]) -> bf16[128,768] {
  %q = bf16[128,768]{1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[768,768]{1,0:T(8,128)(2,1)} broadcast(%q), dimensions={}
  ROOT %convolution.1 = bf16[128,768]{1,0} convolution(%q, %w), dim_labels=bf_io->bf
}

%attention (a: f32[8,64,96], b: f32[8,64,96]) -> f32[8,64,64] {
  %a = f32[8,64,96]{2,1,0} parameter(0)
  %b = f32[8,64,96]{2,1,0} parameter(1)
  ROOT %convolution.2 = f32[8,64,64]{2,1,0} convolution(%a, %b), \
window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0oi->0bf
}

%condition (r: (s32[], bf16[128,768])) -> pred[] {
  %limit = s32[]{:T(128)} constant(3)
  %r = (s32[]{:T(128)}, bf16[128,768]{1,0:T(8,128)(2,1)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%r), index=0
  ROOT %lt = pred[]{:T(512)} compare(%j, %limit), direction=LT
}

%first (f: s32[128]) -> s32[2048] {
  %f = s32[128]{0:T(128)} parameter(0)
  ROOT %g = s32[2048]{0:T(128)} all-gather(%f), channel_id=9, dimensions={0}
}

%second (h: s32[128]) -> s32[2048] {
  %h = s32[128]{0:T(128)} parameter(0)
  ROOT %k = s32[2048]{0:T(128)} all-gather(%h), channel_id=9, dimensions={0}
}

ENTRY %main (x: bf16[128,768], ids: s32[128], y: f32[8,64,96]) -> bf16[128,768] {
  %x.1 = bf16[128,768]{1,0:T(8,128)(2,1)} parameter(0), metadata={op_name="x"}
  %ids = s32[128]{0:T(128)} parameter(1)
  %y = f32[8,64,96]{2,1,0} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  %start = s32[2048]{0:T(128)} fusion(%ids), kind=kCustom, calls=%first
  %end = s32[2048]{0:T(128)} fusion(%ids), kind=kCustom, calls=%second
  %requests = s32[16,8]{1,0:T(8,128)} all-to-all(%ids), channel_id=1, dimensions={0}
  %rows = f32[8,64,96]{2,1,0} all-to-all(%y), channel_id=1, dimensions={0}
  %scores = f32[8,64,64]{2,1,0} fusion(%y, %y), kind=kOutput, calls=%attention
  %kernel = f32[8,64,96]{2,1,0} custom-call(%y), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 256}"
}}, metadata={op_name="splash"}
  %t.1 = (s32[]{:T(128)}, /*index=1*/bf16[128,768]{1,0:T(8,128)(2,1)}) tuple(%zero, %x.1)
  %loop = (s32[]{:T(128)}, bf16[128,768]{1,0:T(8,128)(2,1)}) while(%t.1), \
condition=%condition, body=%body
  ROOT %out = bf16[128,768]{1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=1
}
"""


def test_what_the_tpu_compiler_writes():
    cost = hlo.cost(TPU)
    assert cost.flops == 3 * 2 * 128 * 768 * 768 + 2 * 8 * 64 * 64 * 96
    assert cost.unknown_loops == 0
    assert [(found.kind, found.count, found.sent) for found in cost.collectives] == [
        ("all-reduce", 3, pytest.approx(3 * 2 * 15 / 16 * 128 * 768 * 2)),
        ("all-to-all", 2, pytest.approx(15 / 16 * (128 + 8 * 64 * 96) * 4)),
        ("all-gather", 1, 15 * 128 * 4),
    ]
    matrix, ids = 128 * 768 * 2, (128 + 2048) * 4
    # The loop: a counter, a fusion that only reads, since its result stays on the chip, and a sum
    # that only writes.
    exchanged = 2 * 128 * 4 + 2 * 8 * 64 * 96 * 4
    attention = (2 * 96 + 64) * 8 * 64 * 4
    attention += 2 * 96 * 8 * 64 * 4  # the kernel, whose notes have line breaks
    assert cost.bytes == 3 * (3 * 4 + 2 * matrix) + 2 * ids + exchanged + attention


PIECES = """\
HloModule jit_h, is_scheduled=true

ENTRY %main (x: s8[12]) -> s8[4] {
  %x = s8[12]{0:T(1024)(128)(4,1)} parameter(0)
  %first = ((s8[12]{0:T(1024)(128)(4,1)}), s8[8]{0:T(1024)(128)(4,1)S(1)}, s32[]{:S(2)}) \
slice-start(%x), slice={[0:8]}
  %rest = ((s8[12]{0:T(1024)(128)(4,1)}), s8[4]{0:T(1024)(128)(4,1)}, s32[]{:S(2)}) \
slice-start(%x), slice={[8:12]}
  %on_chip = s8[8]{0:T(1024)(128)(4,1)S(1)} slice-done(%first)
  ROOT %in_memory = s8[4]{0:T(1024)(128)(4,1)} slice-done(%rest)
}
"""


def test_of_a_copy_in_pieces_each_counts_by_itself():
    assert hlo.cost(PIECES).bytes == 8 + 2 * 4


# Rows that the sparse cores of a TPU gather meanwhile.
OFFLOADED = """\
HloModule jit_k, is_scheduled=true

%rows (t: f32[100,8], n: s32[4]) -> f32[4,8] {
  %t = f32[100,8]{1,0} parameter(0)
  %n = s32[4]{0} parameter(1)
  ROOT %found = f32[4,8]{1,0} gather(%t, %n), offset_dims={1}, slice_sizes={1,8}
}

%called (t.1: f32[100,8], n.1: s32[4]) -> f32[4,8] {
  %t.1 = f32[100,8]{1,0} parameter(0)
  %n.1 = s32[4]{0} parameter(1)
  ROOT %f = f32[4,8]{1,0} fusion(%t.1, %n.1), kind=kCustom, calls=%rows
}, execution_thread="sparsecore"

ENTRY %main (table: f32[100,8], ids: s32[4]) -> f32[4,8] {
  %table = f32[100,8]{1,0} parameter(0)
  %ids = s32[4]{0} parameter(1)
  %start = ((f32[100,8]{1,0}, s32[4]{0}), f32[4,8]{1,0}, u32[]{:S(8)}) \
call-start(%table, %ids), async_execution_thread="sparsecore", to_apply=%called
  ROOT %done = f32[4,8]{1,0} call-done(%start)
}
"""


def test_what_is_called_meanwhile_counts_as_what_it_does():
    assert hlo.cost(OFFLOADED).bytes == 2 * 4 * 8 * 4 + 4 * 4


IN_PLACE = """\
HloModule jit_g, is_scheduled=true

%row (t: f32[1,100,8], n: s32[]) -> f32[1,8] {
  %t = f32[1,100,8]{2,1,0} parameter(0)
  %n = s32[] parameter(1)
  %flat = f32[100,8]{1,0} bitcast(%t)
  ROOT %slice = f32[1,8]{1,0} dynamic-slice(%flat, %n, %n), dynamic_slice_sizes={1,8}
}

%reads (t.1: f32[1,100,8], n.1: s32[]) -> f32[1,8] {
  %t.1 = f32[1,100,8]{2,1,0} parameter(0)
  %n.1 = s32[] parameter(1)
  %inner = f32[1,8]{1,0} fusion(%t.1, %n.1), kind=kLoop, calls=%row
  ROOT %double = f32[1,8]{1,0} add(%inner, %inner)
}

%writes (t.2: f32[1,100,8], n.2: s32[], u: f32[1,1,8]) -> f32[1,100,8] {
  %t.2 = f32[1,100,8]{2,1,0} parameter(0)
  %u = f32[1,1,8]{2,1,0} parameter(2)
  %n.2 = s32[] parameter(1)
  ROOT %new = f32[1,100,8]{2,1,0} dynamic-update-slice(%t.2, %u, %n.2, %n.2, %n.2)
}

%adds (t.3: f32[1,100,8], n.3: s32[], u.3: f32[1,8]) -> f32[100,8] {
  %t.3 = f32[1,100,8]{2,1,0} parameter(0)
  %u.3 = f32[1,8]{1,0} parameter(2)
  %n.3 = s32[] parameter(1)
  %flat.3 = f32[100,8]{1,0} bitcast(%t.3)
  ROOT %sum = f32[100,8]{1,0} scatter(%flat.3, %n.3, %u.3), to_apply=%add
}

ENTRY %main (table: f32[1,100,8], i: s32[]) -> f32[100,8] {
  %table = f32[1,100,8]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %taken = f32[1,8]{1,0} fusion(%table, %i), kind=kLoop, calls=%reads
  %shaped = f32[1,1,8]{2,1,0} bitcast(%taken)
  %put = f32[1,100,8]{2,1,0} fusion(%table, %i, %shaped), kind=kLoop, calls=%writes
  ROOT %added = f32[100,8]{1,0} fusion(%put, %i, %taken), kind=kCustom, calls=%adds
}
"""


def test_of_a_table_only_the_rows_that_are_touched_count():
    """As in a scan over stacked weights: a row is read, one written in place, and one added to."""
    row, index = 8 * 4, 4
    read, written, added = row + index + row, index + row + row, index + row + 2 * row
    assert hlo.cost(IN_PLACE).bytes == read + written + added


# A matrix product by NVIDIA's library, with its scratch space, and a fusion beside others.
OF_GPUS = """\
HloModule jit_f, is_scheduled=true

%doubled (p: f32[16,8]) -> f32[16,8] {
  %p = f32[16,8]{1,0} parameter(0)
  ROOT %sum = f32[16,8]{1,0} add(%p, %p)
}

ENTRY %main (x: f32[16,4], w: f32[4,8]) -> f32[16,8] {
  %x = f32[16,4]{1,0} parameter(0)
  %w = f32[4,8]{1,0} parameter(1)
  %gemm = (f32[16,8]{1,0}, s8[4194304]{0}) custom-call(%x, %w), \
custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":\
{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %y = f32[16,8]{1,0} get-tuple-element(%gemm), index=0
  %start = ((f32[16,8]{1,0}), f32[16,8]{1,0}) fusion-start(%y), kind=kLoop, calls=%doubled
  ROOT %done = f32[16,8]{1,0} fusion-done(%start)
}
"""


def test_what_the_gpu_compiler_writes():
    cost = hlo.cost(OF_GPUS)
    assert cost.flops == 2 * 16 * 4 * 8
    assert cost.bytes == (16 * 4 + 4 * 8 + 16 * 8) * 4 + 2 * 16 * 8 * 4
