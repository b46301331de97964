"""Each mixer against its paper's formula, written out here token by token, in float64."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixerzoo.mixers import HGRN, S4D, LowerBounds
from mixerzoo.mixers.base import Tokens
from mixerzoo.mixers.hgrn import log_forget
from mixerzoo.mixers.mamba import GroupedLinear
from mixerzoo.mixers.parts import RMSNorm, ShortConvolution, angles, slopes

B, T, D = 2, 9, 8


def agrees(mixer, formula, tol: float = 1e-10) -> None:
    x = torch.randn(B, T, D, dtype=torch.float64)
    y, _ = mixer(x)
    with torch.no_grad():
        want = torch.stack([formula(row) for row in x])
    assert y.dtype == torch.float64
    assert (y - want).abs().max() <= tol * want.abs().max()


def heads(x: Tensor, m) -> Tensor:
    """[T, H head_dim] to [H, T, head_dim]."""
    return x.reshape(T, m.num_heads, -1).transpose(0, 1)


def rms(x: Tensor) -> Tensor:
    return x / torch.sqrt((x**2).mean() + 1e-6)


def weighted(m, q, k, v, weight) -> list[Tensor]:
    """Σ_{s≤t} weight(h, t, s) (q_t·k_s) v_s of all heads side by side, for every t."""
    return [
        torch.cat(
            [
                sum(weight(h, t, s) * (q[h, t] @ k[h, s]) * v[h, s] for s in range(t + 1))
                for h in range(m.num_heads)
            ]
        )
        for t in range(T)
    ]


def test_linear_attention(make) -> None:
    m = make("linear-attention", D, num_heads=2)

    def formula(x: Tensor) -> Tensor:
        q, k = F.elu(heads(m.q_proj(x), m)) + 1, F.elu(heads(m.k_proj(x), m)) + 1
        v = heads(m.v_proj(x), m)
        above = weighted(m, q, k, v, lambda h, t, s: 1.0)
        below = weighted(m, q, k, torch.ones_like(v), lambda h, t, s: 1.0)
        return m.out_proj(torch.stack(above) / torch.stack(below))

    agrees(m, formula)


def test_transnormer(make) -> None:
    m = make("transnormer", D, num_heads=2)

    def formula(x: Tensor) -> Tensor:
        q, k = F.elu(heads(m.q_proj(x), m)) + 1, F.elu(heads(m.k_proj(x), m)) + 1
        o = weighted(m, q, k, heads(m.v_proj(x), m), lambda h, t, s: 1.0)
        return m.out_proj(torch.stack([m.norm.weight * rms(y) for y in o]))

    agrees(m, formula)


@pytest.mark.parametrize(("layer_idx", "lrpe"), [(0, None), (1, None), (2, True)])
def test_transnormer_llm(make, layer_idx: int, lrpe: bool | None) -> None:
    m = make("transnormer-llm", D, num_heads=2, layer_idx=layer_idx, num_layers=4, lrpe=lrpe)
    assert (m.theta is not None) == (layer_idx == 0 or bool(lrpe))

    def formula(x: Tensor) -> Tensor:
        q, k, v, u = m.qkvu_proj(x).split(D, -1)
        q, k, v = heads(F.silu(q), m), heads(F.silu(k), m), heads(v, m)
        factor = 1 - layer_idx / (3 + 1e-5) + 1e-5
        rows = []
        for t in range(T):
            o = torch.zeros(2, D // 2, dtype=torch.float64)
            for h in range(2):
                slope = 2.0 ** (-8 * (h + 1) / 2) * factor
                for s in range(t + 1):
                    turn = 1.0 if m.theta is None else torch.cos((t - s) * m.theta[h])
                    o[h] += (q[h, t] * k[h, s] * turn).sum() * math.exp(-slope * (t - s)) * v[h, s]
            rows.append(u[t] * rms(o.flatten()))
        return m.out_proj(torch.stack(rows))

    agrees(m, formula)


def test_lightning(make) -> None:
    m = make("lightning", D, num_heads=2, head_dim=5, layer_idx=1, num_layers=4)

    def formula(x: Tensor) -> Tensor:
        qkv = F.silu(m.qkv_proj(x)).reshape(T, 2, 3, 5)
        q, k, v = (qkv[:, :, i].transpose(0, 1) for i in range(3))
        rate = [2.0 ** (-8 * h / 2) * (1 - 1 / (3 + 1e-5) + 1e-5) for h in (1, 2)]
        o = weighted(m, q, k, v, lambda h, t, s: math.exp(-rate[h] * (t - s)))
        o = torch.stack([m.norm.weight * rms(y) for y in o])
        return m.out_proj(torch.sigmoid(m.output_gate(x)) * o)

    agrees(m, formula)


@pytest.mark.parametrize("conv_width", [1, 2, 4])
def test_mamba(make, conv_width: int) -> None:
    m = make("mamba", D, d_state=3, conv_width=conv_width, use_bias=True)

    def formula(u: Tensor) -> Tensor:
        x, z = m.in_proj(u).split(m.d_inner, -1)
        A = -m.A_log.exp()
        h = torch.zeros(m.d_inner, 3, dtype=torch.float64)
        rows = []
        for t in range(T):
            c = m.conv1d.bias.clone()
            for j in range(conv_width):
                s = t - (conv_width - 1) + j
                if s >= 0:
                    c += m.conv1d.weight[:, 0, j] * x[s]
            c = c * torch.sigmoid(c)
            low, Bt, Ct = F.linear(c, m.x_proj.weight).split([m.dt_rank, 3, 3])
            dt = torch.log1p(torch.exp(F.linear(low, m.dt_proj.weight, m.dt_proj.bias)))
            h = torch.exp(dt[:, None] * A) * h + (dt * c)[:, None] * Bt
            rows.append((h @ Ct + m.D * c) * z[t] * torch.sigmoid(z[t]))
        return m.out_proj(torch.stack(rows))

    agrees(m, formula)


@pytest.mark.parametrize("kind", ["hgrn", "hgrn-complex"])
@pytest.mark.parametrize("layer_idx", [0, 2])
@pytest.mark.parametrize("learned", [False, True])
def test_hgrn(make, kind: str, layer_idx: int, learned: bool) -> None:
    bounds = LowerBounds(4, 16) if learned else None
    m = make(kind, D, expand=2, layer_idx=layer_idx, num_layers=4, lower_bound=bounds)
    C = m.channels

    def formula(x: Tensor) -> Tensor:
        gamma = torch.full((C,), layer_idx / 4, dtype=torch.float64)
        if bounds is not None:
            p = bounds.gamma.softmax(0)
            gamma = p.cumsum(0)[layer_idx] - p[0]
        f = gamma + (1 - gamma) * torch.sigmoid(m.forget_gate(x))
        c = F.silu(m.input_proj(x))
        turn = torch.ones(C, dtype=torch.complex128)
        if m.complex:
            c = torch.complex(c[:, :C], c[:, C:])
            turn = torch.exp(1j * m.theta)
        h = torch.zeros(C, dtype=torch.complex128)
        rows = []
        for t in range(T):
            h = f[t] * turn * h + (1 - f[t]) * c[t]
            rows.append(torch.cat([h.real, h.imag]) if m.complex else h.real)
        return m.out_proj(m.norm(torch.sigmoid(m.output_gate(x)) * torch.stack(rows)))

    agrees(m, formula)


@pytest.mark.parametrize(
    "num_kv_heads, rotary_dim, window",
    [(None, None, None), (1, None, None), (None, 2, None), (None, None, 1), (1, 2, 3), (None, None, 100)],
)
def test_softmax(make, num_kv_heads: int | None, rotary_dim: int | None, window: int | None) -> None:
    m = make("softmax", D, num_heads=2, num_kv_heads=num_kv_heads, rotary_dim=rotary_dim, window=window)
    half = (rotary_dim or D // 2) // 2
    theta = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)

    def formula(x: Tensor) -> Tensor:
        q, k, v = (p(x).reshape(T, -1, D // 2) for p in (m.q_proj, m.k_proj, m.v_proj))
        still_q, still_k = (y[..., 2 * half :] for y in (q, k))
        q, k = (torch.complex(y[..., :half], y[..., half : 2 * half]) for y in (q, k))
        rows = []
        for t in range(T):
            first = 0 if window is None else max(0, t + 1 - window)
            o = []
            for h in range(2):
                g = h if num_kv_heads is None else 0
                scores = torch.stack(
                    [
                        (q[t, h] * k[s, g].conj() * torch.exp(1j * (t - s) * theta)).real.sum()
                        + still_q[t, h] @ still_k[s, g]
                        for s in range(first, t + 1)
                    ]
                )
                o.append((scores / math.sqrt(D // 2)).softmax(0) @ v[first : t + 1, g])
            rows.append(torch.cat(o))
        return m.out_proj(torch.stack(rows))

    agrees(m, formula)


# ------------------------------------------------------------------ parts


def test_linear_attention_with_no_weight_at_all(make) -> None:
    """Keys far below zero: φ underflows, the normaliser is 0, and nothing is NaN."""
    m = make("linear-attention", D)
    with torch.no_grad():
        m.k_proj.bias.fill_(-1e4)
    x = torch.randn(1, 4, D, dtype=torch.float64, requires_grad=True)
    y, _ = m(x)
    assert torch.equal(y, m.out_proj.bias.expand_as(y))
    y.sum().backward()
    assert torch.isfinite(x.grad).all()


def test_log_forget_at_its_edges() -> None:
    z = torch.tensor([-1e6, -800.0, -3.0, 0.0, 5.0, 800.0], dtype=torch.float64)
    for bound in (0.0, 1e-300, 0.5, 1 - 1e-12):
        gamma = torch.tensor(bound, dtype=torch.float64, requires_grad=True)
        z_ = z.clone().requires_grad_()
        l = log_forget(z_, gamma)
        assert torch.isfinite(l).all() and (l <= 0).all()
        dz, dgamma = torch.autograd.grad(l.sum(), [z_, gamma])
        assert torch.isfinite(dz).all() and torch.isfinite(dgamma)
        plain = torch.log(bound + (1 - bound) * torch.sigmoid(z[2:5]))
        assert torch.allclose(l[2:5], plain, rtol=1e-9, atol=1e-15)
        # Near 1 the digits of 1 - f are kept: to first order log f is f - 1.
        near = log_forget(torch.tensor(30.0, dtype=torch.float64), gamma)
        assert math.isclose(float(near.detach()), -(1 - bound) * math.exp(-30), rel_tol=1e-12)
    tiny = torch.tensor(0.0, dtype=torch.float64)
    assert torch.equal(log_forget(z, tiny)[:2], z[:2])  # where log(σ(z)) would be -inf


def test_lower_bounds_grow_with_depth() -> None:
    bounds = LowerBounds(4, 3)
    torch.nn.init.normal_(bounds.gamma)
    per_layer = torch.stack([bounds(i) for i in range(4)])
    assert not per_layer[0].any()
    assert (per_layer.diff(dim=0) > 0).all() and (per_layer < 1).all()
    shared = [HGRN(3, layer_idx=i, num_layers=4, lower_bound=bounds) for i in range(4)]
    assert all(m.lower_bound.gamma is bounds.gamma for m in shared)


def test_angles_keep_their_digits_far_out() -> None:
    position = torch.tensor([[10**9 + 7]])
    theta = torch.tensor([0.7312], dtype=torch.float32)
    cos, sin = angles(position, theta)
    want = cmath.exp(1j * (10**9 + 7) * float(theta))
    assert abs(complex(cos.item(), sin.item()) - want) < 1e-6


def test_slopes() -> None:
    got = slopes(8, 0.5, torch.device("cpu"), torch.float64)
    assert got.tolist() == [0.5 * 2.0**-h for h in range(1, 9)]


def test_rms_norm_is_float64() -> None:
    norm = RMSNorm(5).double()
    x = torch.randn(3, 5, dtype=torch.float64)
    assert torch.allclose(norm(x), torch.stack([rms(r) for r in x]), rtol=1e-14, atol=0)


def test_mamba_starts_as_the_paper_says(make) -> None:
    from mixerzoo.mixers import Mamba

    torch.manual_seed(0)
    m = Mamba(64)
    assert torch.allclose(m.A_log.exp(), torch.arange(1.0, 17).expand(128, 16))
    dt = F.softplus(m.dt_proj.bias)
    assert dt.min() >= 1e-3 * (1 - 1e-4) and dt.max() <= 0.1 * (1 + 1e-4)
    assert abs(float(dt.detach().log10().mean()) + 2) < 0.15  # log-uniform: centred on 10^-2
    assert (m.D == 1).all()


def test_unused_places_of_the_cache_are_zero(make) -> None:
    """With a bias, the projections of padding are not."""
    m = make("softmax", D, bias=True)
    _, state = m(torch.randn(2, 2, D, dtype=torch.float64))
    mask = torch.tensor([[True, True], [False, True]])
    for s in (m(torch.randn(2, 2, D, dtype=torch.float64), s, mask)[1] for s in (None, state)):
        for i, n in enumerate(s.position.tolist()):
            assert s.keys[i, :n].any() and not s.keys[i, n:].any() and not s.values[i, n:].any()


@pytest.mark.parametrize("name", ["hgrn-complex", "lru", "s5", "s4d"])
def test_states_are_the_papers_turned(make, name: str) -> None:
    """By e^{-iT angle}, as the docstrings have it."""
    m = make(name, D)
    x = torch.randn(B, T, D, dtype=torch.float64)
    _, state = m(x)
    with torch.no_grad():
        if name == "hgrn-complex":
            angle, kept = m.theta, torch.sigmoid(m.forget_gate(x))
            size, write = kept, (1 - kept) * torch.complex(*F.silu(m.input_proj(x)).chunk(2, -1))
        elif name == "s4d":
            dt, rate = m.log_dt.exp()[:, None], torch.complex(-m.log_A_real.exp(), m.A_imag)
            angle, size = dt * m.A_imag, torch.exp(dt * rate.real).expand(B, T, -1, -1)
            write = (torch.exp(dt * rate) - 1) / rate * x[..., None]
        else:
            log_size, angle, re, im = m.transition(torch.float64)
            size = log_size.exp().expand(B, T, -1)
            write = torch.complex(re, im) * torch.complex(*m.input_proj(x).chunk(2, -1))
        h = torch.zeros_like(write[:, 0])
        for t in range(T):
            h = size[:, t] * torch.exp(1j * angle) * h + write[:, t]
        found = state.recurrent.reshape(B, *([-1] if h.ndim == 2 else [D, -1]))
        found = torch.complex(*found.chunk(2, -1)) * torch.exp(1j * T * angle)
    assert (found - h).abs().max() <= 1e-10 * h.abs().max()


def test_grouped_maps() -> None:
    """Each group of channels its own matrix, and its part of the bias."""
    layer = GroupedLinear(2, 3, 4).double()
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    for g in (0, 1):
        rows = slice(4 * g, 4 * g + 4)
        want = x[:, g] @ layer.weight[rows].mT + layer.bias[rows]
        assert (layer(x)[:, g] - want).abs().max() < 1e-12


def test_root_of_one_minus_a_square() -> None:
    """From a next to 1, where the difference has lost its digits, to 0."""
    from mixerzoo.mixers.rg_lru import root_one_minus_square

    rate = torch.tensor([1e-12, 1e-7, 2e-6, 4.9e-6, 5.1e-6, 1e-3, 1.0, 30.0], dtype=torch.float64)  # -log a
    want = [math.sqrt(-math.expm1(-2 * r)) for r in rate.tolist()]
    got = root_one_minus_square(rate.log())
    assert got.tolist() == pytest.approx(want, rel=1e-13)


def test_angles_of_late_positions() -> None:
    """Steps and rates are multiplied in float64: in float32 S4D's angles at 10⁵ would be off by 10⁻²."""
    m = S4D(3, d_state=8)
    tokens = Tokens(torch.tensor([[100_000]]), None)
    x = torch.randn(1, 1, 3)
    cores = [n.operands(y, n.initial_state(1, dtype=y.dtype), tokens) for n, y in ((m, x),)]
    cores.append(m.double().operands(x.double(), m.initial_state(1, dtype=torch.float64), tokens))
    for a, b in ((cores[0].q, cores[1].q), (cores[0].k, cores[1].k)):
        assert (a - b).abs().max() <= 1e-6 * b.abs().max()


def test_parts_return_the_dtype_they_were_given() -> None:
    x = torch.randn(1, 5, 4).bfloat16()
    assert RMSNorm(4)(x).dtype == torch.float32  # its weight's
    assert RMSNorm(4, weight=False)(x).dtype == RMSNorm(4).bfloat16()(x).dtype == torch.bfloat16
    convolution = ShortConvolution(4, 3)
    cu, position = torch.tensor([0, 2, 5]), torch.tensor([[0, 1, 0, 1, 2]])
    packed = Tokens(position, cu.diff(), None, cu, torch.tensor([0, 0, 1, 1, 1]))
    for tokens in (Tokens(position, None), packed):
        assert all(y.dtype == torch.bfloat16 for y in convolution(x, None, tokens))


@pytest.mark.parametrize("window", [None, 3])
def test_the_map_of_softmax_attention(make, window: int | None) -> None:
    """Weighs the values into what the output projection is given."""
    m = make("softmax", D, num_heads=4, num_kv_heads=2, window=window)
    x = torch.randn(B, T, D, dtype=torch.float64)
    values = m.v_proj(x[0]).unflatten(-1, (2, -1)).transpose(0, 1).repeat_interleave(2, 0)
    o = m.attention_map(x)[0] @ values
    want = m.out_proj(o.transpose(0, 1).flatten(1))
    assert (m(x)[0][0] - want).abs().max() < 1e-12
