"""Every form is the loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixerzoo.kernels import recurrence
from oracle import DECAYS, VALUE_DECAYS, arguments, error, loop

FORMS = ("parallel", "chunk", "recurrent", "scan", "auto")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def agree(args, tolerance, forms=FORMS, chunk_size=None, **options):
    *operands, s0 = args
    want_o, want_s = loop(*operands, s0, **options)
    for form in forms:
        o, s = recurrence(*operands, initial_state=s0, form=form, chunk_size=chunk_size, **options)
        assert o.dtype == operands[2].dtype
        assert error(o, want_o) < tolerance, form
        assert error(s, want_s) < tolerance, form


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("value_decay", VALUE_DECAYS)
@pytest.mark.parametrize("decay", DECAYS)
def test_every_length_and_decay(decay, value_decay, dtype):
    torch.manual_seed(0)
    for T in (0, 1, 2, 63, 64, 65):
        agree(arguments(2, T, 2, 5, 3, decay, value_decay, dtype), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("decay", DECAYS)
def test_long(decay, dtype):
    torch.manual_seed(1)
    agree(arguments(1, 1000, 2, 4, 6, decay, "BTHV", dtype), TOLERANCE[dtype])
    agree(arguments(1, 1000, 2, 4, 6, decay, "none", dtype), TOLERANCE[dtype])


@pytest.mark.parametrize("K, V", [(1, 1), (1, 7), (7, 1), (16, 16), (33, 5)])
def test_every_width(K, V):
    torch.manual_seed(2)
    for decay in DECAYS:
        for value_decay in VALUE_DECAYS:
            agree(arguments(1, 19, 2, K, V, decay, value_decay), 1e-12)


@given(
    shape=st.tuples(
        st.integers(1, 2),
        st.integers(0, 40),
        st.sampled_from([1, 2, 6]),
        st.integers(1, 5),
        st.integers(1, 5),
    ),
    decay=st.sampled_from(DECAYS),
    value_decay=st.sampled_from(VALUE_DECAYS),
    read=st.sampled_from(["after", "before"]),
    reverse=st.booleans(),
    masked=st.booleans(),
    chunk_size=st.sampled_from([None, 1, 3, 8, 16]),
    share=st.tuples(st.sampled_from([1, 2, 3, 6]), st.sampled_from([1, 2, 3, 6])),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=150, deadline=None)
def test_everything_together(
    shape, decay, value_decay, read, reverse, masked, chunk_size, share, dtype, seed
):
    torch.manual_seed(seed)
    B, T, H, K, V = shape
    heads = tuple(h if H % h == 0 else H for h in share)
    args = arguments(B, T, H, K, V, decay, value_decay, dtype, heads)
    mask = torch.rand(B, T) < 0.6 if masked else None
    agree(args, TOLERANCE[dtype], chunk_size=chunk_size, read=read, reverse=reverse, mask=mask, scale=0.7)


@pytest.mark.parametrize("decay", DECAYS)
def test_strides_do_not_matter(decay):
    torch.manual_seed(3)
    q, k, v, la, lb, s0 = arguments(2, 20, 4, 6, 6, decay, "BTHV")

    def odd(x):  # the same numbers, every second element of a transposed buffer
        if not isinstance(x, torch.Tensor):
            return x if x is None else type(x)(*map(odd, x))
        buffer = torch.full((*x.shape[::-1], 2), float("nan"), dtype=x.dtype)
        view = buffer[..., 0].permute(*reversed(range(x.ndim)))
        view.copy_(x)
        assert not view.is_contiguous()
        return view

    agree(tuple(map(odd, (q, k, v, la, lb, s0))), 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("decay", DECAYS)
def test_low_precision(decay, dtype):
    """Within twice the error of an independent computation at the same precision, against float64."""
    torch.manual_seed(4)
    *operands, s0 = arguments(2, 200, 2, 16, 8, decay, "none", dtype, extremes=decay != "none")
    exact = [x.double() if isinstance(x, torch.Tensor) else x for x in operands]
    if decay == "outer":
        exact[3] = type(operands[3])(*(x.double() for x in operands[3]))
    want, want_s = loop(*exact, s0.double())
    reference, reference_s = loop(*operands, s0)  # float32 state, output rounded
    for form in FORMS:
        o, s = recurrence(*operands, initial_state=s0, form=form)
        assert o.dtype == dtype
        assert s.dtype == torch.float32
        assert error(o, want) <= 2 * error(reference.to(dtype), want)
        assert error(s, want_s) <= max(2 * error(reference_s, want_s), 1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_autocast_changes_nothing(form):
    torch.manual_seed(5)
    q, k, v, la, _, _ = arguments(1, 70, 2, 16, 16, "BTHK", dtype=torch.float32)
    plain = recurrence(q, k, v, la, form=form)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = recurrence(q, k, v, la, form=form)
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))
