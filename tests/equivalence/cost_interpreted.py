"""The cost meter where Triton interprets kernels: counts against counts by hand. Run by test_cost.py, in a
process of its own: the interpreter is chosen when triton is imported."""

import torch
import triton
import triton.language as tl
from triton.runtime import interpreter as triton_interpreter

from mixerzoo.equivalence.cost import Product, count
from mixerzoo.equivalence.cost.operators import Case, call_of
from mixerzoo.equivalence.cost.worker import as_on, measure_call, run
from mixerzoo.kernels import recurrence


@triton.jit
def copy(x, y, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, mask=at < n, other=0.0), mask=at < n)


@triton.jit
def copy_all(x, y):
    at = tl.arange(0, 8)
    tl.store(y + at, tl.load(x + at))
    tl.store(y + 8, tl.load(x + 8))


def test_active_lanes_in_the_dtype_of_the_pointer():
    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2), (torch.float64, 8), (torch.int8, 1)):
        x, y = torch.arange(20).to(dtype), torch.zeros(20, dtype=dtype)
        with count() as cost:
            copy[(3,)](x, y, 20, BLOCK=8)
        assert torch.equal(x, y)
        k = cost.kernels["copy"]
        assert (k.launches, k.programs) == (1, 3)
        assert k.read == k.written == k.distinct_read == k.distinct_written == 20 * size
        assert cost.moved == 40 * size
        assert not cost.operations, "what the interpreter itself copies is not the program's"


def test_without_masks_and_scalars():
    x, y = torch.randn(9), torch.zeros(9)
    with count() as cost:
        copy_all[(1,)](x, y)
    assert torch.equal(x, y)
    assert cost.kernels["copy_all"].read == cost.kernels["copy_all"].written == 36


@triton.jit
def rows(x, y, n):
    at = tl.arange(0, 4)
    for i in range(n):
        tl.store(y + i * 4 + at, tl.load(x + at * 0) + tl.load(x + at))


def test_distinct_bytes_count_an_address_once_per_launch():
    x, y = torch.randn(4), torch.zeros(12)
    with count() as cost:
        rows[(1,)](x, y, 3)
        rows[(1,)](x, y, 3)
    k = cost.kernels["rows"]
    assert (k.launches, k.programs) == (2, 2)
    assert k.read == 2 * 3 * 8 * 4
    assert k.distinct_read == 2 * 4 * 4
    assert k.written == k.distinct_written == 2 * 12 * 4
    assert k.distinct == 2 * (4 + 12) * 4
    assert k.arithmetic == 2 * 3 * 4


@triton.jit
def atomics(x, n):
    at = tl.arange(0, 16)
    tl.atomic_add(x + at % 2, 1.0, mask=at < n)
    tl.atomic_cas(x + 2, 0.0, 5.0)


def test_atomics_read_and_write():
    x = torch.zeros(3)
    with count() as cost:
        atomics[(1,)](x, 10)
    assert x.tolist() == [5, 5, 5]
    k = cost.kernels["atomics"]
    assert k.read == k.written == k.atomic == 11 * 4
    assert k.distinct_read == k.distinct_written == 3 * 4


@triton.jit
def dots(x, y, z, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PREC: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    a = tl.load(x + m[:, None] * K + k[None, :])
    b = tl.load(y + k[:, None] * N + n[None, :])
    tl.store(z + m[:, None] * N + n[None, :], tl.dot(a, b, input_precision=PREC))


def test_products_by_operands_and_precision():
    M, N, K = 16, 32, 64
    flops = 2 * M * N * K
    for dtype, name, precision, times, format in (
        (torch.bfloat16, "bf16", "tf32", 1, "bf16"),
        (torch.float16, "fp16", "ieee", 1, "fp16"),
        (torch.float32, "fp32", "ieee", 1, "fp32"),
        (torch.float32, "fp32", "tf32", 1, "tf32"),
        (torch.float32, "fp32", "tf32x3", 3, "tf32"),
        (torch.float32, "fp32", "bf16x3", 3, "bf16"),
        (torch.float32, "fp32", "bf16x6", 6, "bf16"),
        (torch.float64, "fp64", "ieee", 1, "fp64"),
    ):
        x, y = torch.randn(M, K).to(dtype), torch.randn(K, N).to(dtype)
        z = torch.zeros(M, N, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        with count() as cost:
            dots[(1,)](x, y, z, M, N, K, precision)
        assert torch.allclose(z, x.to(z.dtype) @ y.to(z.dtype), atol=1e-4)
        k = cost.kernels["dots"]
        (product,) = k.flops
        assert (product.operands, product.times, product.format) == (name, times, format)
        assert product.precision == (precision if name == "fp32" else "")
        assert k.nominal == flops
        assert k.executed == cost.executed == times * flops


@triton.jit
def batched(x, z):
    b, m, k = tl.arange(0, 4), tl.arange(0, 16), tl.arange(0, 8)
    a = tl.load(x + b[:, None, None] * 128 + m[None, :, None] * 8 + k[None, None, :])
    out = tl.dot(a, tl.trans(a, 0, 2, 1), input_precision="ieee")
    tl.store(z + b[:, None, None] * 256 + m[None, :, None] * 16 + m[None, None, :], out)


def test_batched_products():
    x, z = torch.randn(4, 16, 8), torch.zeros(4, 16, 16)
    with count() as cost:
        batched[(1,)](x, z)
    assert torch.allclose(z, x @ x.mT, atol=1e-5)
    assert cost.kernels["batched"].flops == {Product("fp32", "ieee"): 2 * 4 * 16 * 16 * 8}


@triton.jit
def then(a1, x1, a2, x2):
    return a1 * a2, a2 * x1 + x2


@triton.jit
def largest(x, y):
    return tl.where(x > y, x, y)


@triton.jit
def scans(x, y, z, w):
    i, j = tl.arange(0, 8), tl.arange(0, 4)
    a = tl.exp(tl.load(x + i[:, None] * 4 + j[None, :]))
    _, s = tl.associative_scan((a, a + 1.0), 0, then)
    _, r = tl.associative_scan((a, a + 1.0), 0, then, reverse=True)
    tl.store(y + i[:, None] * 4 + j[None, :], s)
    tl.store(z + i[:, None] * 4 + j[None, :], r)
    tl.store(w + j, tl.reduce(a, 0, largest) + tl.sum(a, 0))


def test_scans_and_reductions_of_all_lanes_at_once_are_those_of_each():
    x = torch.randn(8, 4)
    y, z, w = torch.zeros(8, 4), torch.zeros(8, 4), torch.zeros(4)
    with count() as cost:
        scans[(1,)](x, y, z, w)
    a = x.exp()

    def loop(a):
        s, out = torch.zeros(4), []
        for row in a:
            s = row * s + row + 1
            out.append(s)
        return torch.stack(out)

    assert torch.allclose(y, loop(a), rtol=1e-5)
    assert torch.allclose(z, loop(a.flip(0)).flip(0), rtol=1e-5)
    assert torch.allclose(w, a.amax(0) + a.sum(0), rtol=1e-5)
    k = cost.kernels["scans"]
    assert k.special == 32
    # a + 1 twice; seven compositions of 3 operations on 4 lanes, twice; a sum of 32 lanes; one addition
    assert k.arithmetic == 2 * 32 + 2 * 7 * 3 * 4 + 32 + 4


@triton.jit
def described(x, y, n, m):
    source = tl.make_tensor_descriptor(x, [n, m], [m, 1], [8, 8])
    target = tl.make_tensor_descriptor(y, [n, m], [m, 1], [8, 8])
    target.store([0, 0], source.load([0, 0]))


def test_descriptors_count_what_is_in_bounds():
    x, y = torch.randn(5, 8), torch.zeros(5, 8)
    with count() as cost:
        described[(1,)](x, y, 5, 8)
    assert torch.equal(x, y)
    assert cost.kernels["described"].read == cost.kernels["described"].written == 5 * 8 * 4


@triton.jit
def rounded(x, y):
    at = tl.arange(0, 1024)
    tl.store(y + at, tl.load(x + at).to(tl.bfloat16))


def test_conversion_to_bfloat16_is_that_of_torch():
    x = torch.randn(1024)
    x[:4] = torch.tensor([float("inf"), float("nan"), 1.99999, -0.0])
    y = torch.zeros(1024, dtype=torch.bfloat16)
    with count():
        rounded[(1,)](x, y)
    assert torch.equal(y.nan_to_num(7.0), x.to(torch.bfloat16).nan_to_num(7.0))


def test_names_grids_and_nested_counts():
    x, y = torch.randn(64), torch.zeros(64)
    with count() as outer:
        copy[lambda meta: (triton.cdiv(64, meta["BLOCK"]),)](x, y, 64, BLOCK=16)
        with count() as inner:
            copy[(2, 2, 1)](x, y, 0, BLOCK=16)
            copy_all[(1,)](x, y)
    assert list(inner.kernels) == ["copy", "copy_all"]
    assert (inner.kernels["copy"].programs, inner.kernels["copy"].moved) == (4, 0)
    assert (outer.kernels["copy"].programs, outer.kernels["copy"].launches) == (8, 2)
    assert outer.kernels["copy"].read == 256


def test_the_interpreter_is_left_as_it_was():
    places = (
        triton_interpreter.InterpreterBuilder, triton_interpreter.GridExecutor,
        triton_interpreter.ScanOps, triton_interpreter.ReduceOps,
    )  # fmt: skip
    before = [dict(vars(place)) for place in places]
    options = triton_interpreter.interpreter_builder.options
    try:
        with count(), count():
            assert any(dict(vars(p)) != b for p, b in zip(places, before, strict=True))
            raise KeyError
    except KeyError:
        pass
    assert [dict(vars(place)) for place in places] == before
    assert triton_interpreter.interpreter_builder.options is options


def test_torch_around_kernels_is_counted_through_custom_operators():
    """The operator, forward and backward: its kernels, and the sums after them, not the operator itself."""
    call = call_of(Case("mamba1", length=16))
    with count() as cost, as_on("sm_90"):
        recurrence(**call.operands, backend="triton")
    assert cost.kernels["recurrent_forward"].launches == 1
    assert not any("recurrence" in name for name in cost.operations)
    assert all(x.moved > 0 for x in cost.operations.values())


def test_counted_kernels_compute_what_torch_computes():
    """Under the plan of a GPU: bfloat16 products, its block sizes."""
    for operator, variants in (
        ("vector", ("state",)),
        ("scalar", ("before", "packed", "mask")),
        ("both", ()),
        ("gated_delta", ("state",)),
        ("dplr", ()),
    ):
        for schedule in ("fused", "split"):
            case = Case(operator, length=80, head_dim=16, schedule=schedule, variants=variants)
            call = call_of(case)
            with count() as cost, as_on("sm_80"):
                o, s = recurrence(**call.operands, **call.options, backend="triton", schedule=schedule)
            want, want_s = recurrence(**call.operands, **call.options, backend="torch")
            for a, b in ((o, want), (s, want_s)):
                assert float((a.detach() - b.detach()).norm() / b.detach().norm()) < 2e-2
            # the system of what erases is inverted in more than bfloat16
            solve = {"fp32"} if operator in ("gated_delta", "dplr") else set()
            assert {p.operands for k in cost.kernels.values() for p in k.flops} == {"bf16"} | solve


def test_nothing_costs_less_than_the_least():
    for operator in ("none", "scalar", "vector", "hgrn", "mamba1", "delta", "kda", "dplr"):
        for schedule in ("fused", "split"):
            case = Case(operator, length=16, head_dim=16, schedule=schedule)
            for cost, least in measure_call(call_of(case), schedule, "sm_90").values():
                assert cost.distinct >= least.bytes
                assert cost.moved >= cost.distinct
                assert not least.flops or not cost.nominal or cost.executed >= least.flops


def test_traffic_of_the_delta_rule():
    """Every input read about once, every output written about once."""
    for operator, head_dim in (("gated_delta", 64), ("gated_delta", 128), ("kda", 64)):
        case = Case(operator, length=128, head_dim=head_dim)
        for name, (cost, least) in measure_call(call_of(case), "fused", "sm_90").items():
            assert cost.moved <= (1.1 if name == "forward" else 4.0) * least.bytes, (operator, head_dim, name)


def test_mixers():
    (record,) = run(Case(mixer="lightning", d_model=32, length=16))
    assert record["shape"]["T"] == 16
    assert set(record["passes"]) == {"forward", "backward"}
    assert record["passes"]["forward"]["cost"]["read"] > 0
    assert run(Case(mixer="softmax", d_model=32, length=16)) == []
