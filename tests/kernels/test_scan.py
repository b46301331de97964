"""The scan in two levels: groups of every kind of end, both directions, memory reused and not."""

import math

import pytest
import torch

from mixerzoo.kernels import OuterDecay, forms, gradients, recurrence, scan
from mixerzoo.kernels.memory import reusing
from mixerzoo.kernels.order import ALL_ORDERS
from mixerzoo.kernels.steps import Slice


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(g, *sizes):
    return torch.randn(*sizes, generator=g, dtype=torch.float64)


def log_decays(g, *sizes):
    """A tenth of them resets, a tenth so strong that they underflow."""
    r = torch.rand(*sizes, generator=g, dtype=torch.float64)
    return torch.where(r < 0.1, -math.inf, torch.where(r > 0.9, -1000.0, -2 * r))


def one_by_one(d, w, S, back):
    states = [None] * len(w)
    for t in reversed(range(len(w))) if back else range(len(w)):
        S = states[t] = w[t] + (S if d is None else d[t] * S)
    return torch.stack(states)


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("length", [2, 3, 8])
def test_states_at_every_end_of_a_group(length, back, monkeypatch):
    monkeypatch.setattr(scan, "group_length", lambda n, numbers: min(n, length))
    g = generator()
    for n in (1, length - 1, length, length + 1, 2 * length - 1, 2 * length, 5 * length + 1, length**2 + 1):
        w, S = normal(g, n, 2, 3), normal(g, 2, 3)
        for d in (None, torch.rand(n, 2, 1, generator=g, dtype=torch.float64), log_decays(g, n, 2, 3).exp()):
            want = one_by_one(d, w, S, back)
            new = scan.lockstep(d, w, S, 6, back)
            assert torch.allclose(new, want, rtol=1e-12, atol=1e-12)
            for apart in (False, True):
                with reusing():
                    written = w.clone()
                    room = torch.empty_like(w) if apart else written
                    there = scan.lockstep(d, written, S, 6, back, out=room)
                assert there.data_ptr() == room.data_ptr() and torch.equal(there, new)
                assert not apart or torch.equal(written, w)


def test_groups_are_as_long_as_pays():
    assert scan.group_length(1024, 64) < 128 < scan.group_length(1024, 1 << 16) == 1024
    assert scan.group_length(1, 1) == 1


def slices(g, n, heads, K, V, la_width, decays_values):
    H, Hq, Hk = heads
    return Slice(
        normal(g, 2, Hq, n, K),
        normal(g, 2, Hk, n, K),
        normal(g, 2, H, n, V),
        None if la_width is None else log_decays(g, 2, H, n, la_width),
        log_decays(g, 2, H, n, V) if decays_values else None,
    )


KINDS = [(None, False), (1, False), (3, False), (None, True), (1, True), (3, True)]


@pytest.mark.parametrize("order", ALL_ORDERS, ids=lambda o: o.events)
@pytest.mark.parametrize(("la_width", "decays_values"), KINDS)
def test_a_block_is_the_walk_and_so_is_its_gradient(order, la_width, decays_values, monkeypatch):
    monkeypatch.setattr(scan, "group_length", lambda n, numbers: min(n, 4))
    g = generator(1)
    for n, heads in ((1, (1, 1, 1)), (4, (2, 1, 2)), (11, (2, 2, 1)), (18, (2, 1, 1))):
        c = slices(g, n, heads, 3, 2, la_width, decays_values)
        S, G, do = normal(g, 2, heads[0], 3, 2), normal(g, 2, heads[0], 3, 2), normal(g, 2, heads[0], n, 2)
        want = (*forms.walk(c, S, order), gradients.walk_gradient(c, S, G, do, order))
        for reuse in (False, True):
            with reusing(reuse):
                o, end = scan.scan(c, S, order)
                close(o, want[0])
                close(end, want[1])
                close(scan.end(c, S, order), want[1])
                found, start = gradients.GRADIENTS["scan"](c, S, G, do, order)
                close(start, want[2][1])
                for name, x, y in zip(Slice._fields, found, want[2][0], strict=False):
                    if y is not None:
                        heads_of = getattr(c, name).shape[1]
                        close(x, y if x.shape[1] == y.shape[1] else y.sum(1, True))
                        assert x.shape[1] in (heads[0], heads_of)


def close(x, y):
    assert torch.isfinite(x).all() and torch.allclose(x, y, rtol=1e-12, atol=1e-12)


def leaves(g, T, decay):
    H, K, V = (1, 1, 3) if decay == "values" else (2, 2, 1)
    found = {"q": normal(g, 2, T, 1, K), "k": normal(g, 2, T, 1, K), "v": normal(g, 2, T, H, V)}
    if decay == "outer":
        found |= {
            "dt": torch.rand(2, T, H, generator=g, dtype=torch.float64),
            "A": -torch.rand(H, K).double(),
        }
        found["A"][0, 0] = -math.inf
        found["dt"][:, T // 2] = 0
    elif decay == "values":
        found["lb"] = log_decays(g, 2, T, H, V)
    else:
        found["la"] = log_decays(g, 2, T, H, K)
    return found | {"S": normal(g, 2, H, K, V)}


def called(x, **options):
    la = OuterDecay(x["dt"], x["A"]) if "A" in x else x.get("la")
    return recurrence(
        x["q"], x["k"], x["v"], la, x.get("lb"), initial_state=x["S"], backend="torch", **options
    )


@pytest.mark.parametrize("decay", ["outer", "values", "keys"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("read", ["after", "before"])
def test_blocks_masks_and_packing_by_the_operator(decay, reverse, read):
    for T, size in ((1, 8), (7, 8), (8, 8), (33, 16), (40, 9), (40, 1)):
        x = leaves(generator(T), T, decay)
        mask = torch.rand(2, T, generator=generator(2)) > 0.3
        packed = {n: y if n == "A" else y.flatten(0, 1)[None] for n, y in x.items()}
        packed["S"] = torch.cat([x["S"], x["S"][:1]])
        cases = [
            (x, {}),
            (x, {"mask": mask}),
            (packed, {"cu_seqlens": torch.tensor([0, T, T, 2 * T])}),
        ]
        for operands, more in cases:
            found = []
            for form in ("scan", "recurrent"):
                y = {n: z.clone().requires_grad_() for n, z in operands.items()}
                o, S = called(y, form=form, read=read, reverse=reverse, chunk_size=size, **more)
                weights = normal(generator(3), *o.shape), normal(generator(4), *S.shape)
                found.append((o, S, *torch.autograd.grad((o, S), list(y.values()), weights)))
            for a, b in zip(*found, strict=True):
                close(a, b)


def test_gradients_of_reset_decays_are_zero():
    x = {n: y.requires_grad_() for n, y in leaves(generator(), 20, "values").items()}
    o, _ = called(x, form="scan")
    (g,) = torch.autograd.grad(o.sum(), x["lb"])
    assert (g[x["lb"].isneginf()] == 0).all() and g.abs().sum() > 0


@pytest.mark.parametrize("decay", ["outer", "values", "keys"])
def test_second_derivatives(decay, monkeypatch):
    monkeypatch.setattr(scan, "group_length", lambda n, numbers: min(n, 4))
    x = leaves(generator(5), 9, decay)
    if decay != "outer":
        name = "lb" if decay == "values" else "la"
        x[name] = torch.where(x[name] < -10, -0.5, x[name])
    else:
        x["A"] = torch.where(x["A"].isneginf(), -0.5, x["A"])
    names = list(x)
    xs = [x[n].requires_grad_() for n in names]

    def run(*ys):
        return called(dict(zip(names, ys, strict=True)), form="scan")

    assert torch.autograd.gradcheck(run, xs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, xs, fast_mode=True)


def test_second_derivatives_at_resets_are_numbers(monkeypatch):
    monkeypatch.setattr(scan, "group_length", lambda n, numbers: min(n, 4))
    x = {n: y.requires_grad_() for n, y in leaves(generator(6), 9, "values").items()}
    o, _ = called(x, form="scan")
    first = torch.autograd.grad((o**2).sum(), list(x.values()), create_graph=True)
    second = torch.autograd.grad(sum((y**2).sum() for y in first), list(x.values()))
    assert all(torch.isfinite(y).all() for y in second)
    assert (second[list(x).index("lb")][x["lb"].isneginf()] == 0).all()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("read", ["after", "before"])
@pytest.mark.parametrize("T", [1, 64, 200])
def test_a_number_in_memory_for_all_queries_or_keys(T, read, reverse):
    """Queries and keys that are 1 are not multiplied by; other numbers, and ones in memory, are."""
    g = generator(T)
    v, lb = normal(g, 2, T, 2, 3), log_decays(g, 2, T, 2, 3)
    do = normal(g, 2, T, 2, 3)
    for q, k in ((1.0, 1.0), (2.0, 1.0), (1.0, -0.5)):
        found = []
        for apart in (False, True):
            xs = [torch.full((1, 1, 1, 1), x, dtype=torch.float64).expand(2, T, 1, 1) for x in (q, k)]
            xs = [*(x.clone() if apart else x for x in xs), v.clone(), lb.clone()]
            leaves = [x.requires_grad_() for x in (xs if apart else xs[2:])]
            options = {"read": read, "reverse": reverse, "form": "scan", "backend": "torch", "chunk_size": 48}
            o, S = recurrence(*xs[:3], None, xs[3], **options)
            found.append((o, S, *torch.autograd.grad(o, leaves, do)[-2:]))
        for a, b in zip(*found, strict=True):
            close(a, b)


@pytest.mark.parametrize("B, T", [(0, 5), (2, 0)])
def test_of_no_rows_or_steps_there_is_no_number_to_look_at(B, T):
    one, v = torch.ones(1, 1, 1, 1).expand(B, T, 1, 1), torch.zeros(B, T, 1, 8)
    o, S = recurrence(one, one, v, None, v, form="scan", backend="torch")
    assert o.shape == v.shape and S.shape == (B, 1, 1, 8)


@pytest.mark.parametrize("back", [False, True])
def test_one_decay_for_all_steps(back, monkeypatch):
    """A step [1, ...], or n that are one in memory."""
    monkeypatch.setattr(scan, "group_length", lambda n, numbers: min(n, 4))
    g = generator(3)
    for n in (2, 7, 8, 9, 40):
        w, S, d = normal(g, n, 2, 3), normal(g, 2, 3), torch.rand(1, 2, 1, generator=g, dtype=torch.float64)
        want = one_by_one(d.expand(n, 2, 1), w, S, back)
        with reusing():
            for one in (d, d.expand(n, 2, 1)):
                there = scan.lockstep(one, w.clone(), S, 6, back, out=torch.empty_like(w))
                assert torch.allclose(there, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("read", ["after", "before"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", ["constant", "varying", "both", "none"])
def test_states_as_outputs(read, reverse, kind, monkeypatch):
    """Queries of 1, of several blocks, whose outputs are states; and keys of 1 or not."""
    monkeypatch.setattr("mixerzoo.kernels.ops.scan_block", lambda p, gradient=False: 32)
    monkeypatch.setattr(scan, "group_length", lambda n, numbers: min(n, 4))
    g, T = generator(4), 71
    one = torch.ones((), dtype=torch.float64).expand(2, T, 1, 1)
    v, S = normal(g, 2, T, 1, 3), normal(g, 2, 1, 1, 3)
    la = {"both": log_decays(g, 1), "none": None}.get(kind)
    constant = -torch.rand(1, 3, generator=g, dtype=torch.float64)
    lb = {"varying": log_decays(g, 2, T, 1, 3), "none": None}.get(kind, constant)
    for k in (one, normal(g, 2, T, 1, 1)):
        leaves = [x.clone().requires_grad_() for x in (k, v, S, la, lb) if x is not None]

        def run(form, k=k, leaves=leaves):
            own, values, state, *decays = leaves
            decays = [None] * (2 - len(decays)) + decays if la is None else decays
            q, k = one, one if k is one else own
            options = {"initial_state": state, "read": read, "reverse": reverse, "form": form}
            o, end = recurrence(q, k, values, *(decays if lb is not None else (None, None)), **options)
            given = torch.linspace(-1, 1, o.numel(), dtype=o.dtype).view_as(o)
            loss = (o * given).sum() + end.square().sum()
            return o, end, *torch.autograd.grad(loss, leaves, allow_unused=True)

        for a, b in zip(run("scan"), run("recurrent"), strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.allclose(a, b, rtol=1e-12, atol=1e-12)
