"""Bad input: one error each, naming the argument, what it was and what is accepted."""

import math
import re

import pytest
import torch

from mixerzoo.kernels import OuterDecay, check_values, recurrence, step


def good():
    B, T, H, K, V = 2, 4, 6, 3, 5
    return {
        "q": torch.randn(B, T, 2, K),
        "k": torch.randn(B, T, 3, K),
        "v": torch.randn(B, T, H, V),
    }


A4 = torch.rand(2, 4, 6)
CASES = [
    # (changed arguments, error, what its message says, in order)
    ({"q": torch.randn(2, 4, 3)}, ValueError, ["q has shape [2, 4, 3]", "[B, T, Hq, K]"]),
    ({"q": [1.0]}, TypeError, ["q is list", "a tensor"]),
    ({"k": torch.randint(3, (2, 4, 3, 3))}, TypeError, ["k has dtype torch.int64", "float64"]),
    (
        {"q": torch.randn(2, 4, 2, 3).double()},
        TypeError,
        ["q has dtype torch.float64", "dtype of v", "float32"],
    ),
    ({"q": torch.randn(2, 5, 2, 3)}, ValueError, ["q has shape [2, 5, 2, 3]", "[2, 4]"]),
    ({"q": torch.randn(2, 4, 4, 3)}, ValueError, ["q has 4 heads", "divisor of v's 6 heads"]),
    ({"k": torch.randn(2, 4, 5, 3)}, ValueError, ["k has 5 heads", "divisor of v's 6 heads"]),
    ({"q": torch.randn(2, 4, 2, 7)}, ValueError, ["q has key dimension 7", "that of k, 3"]),
    ({"v": torch.randn(2, 4, 6, 0)}, ValueError, ["v has shape [2, 4, 6, 0]", "at least one channel"]),
    ({"q": torch.randn(2, 4, 2, 3, device="meta")}, ValueError, ["q is on meta", "device of v, cpu"]),
    (
        {"log_decay": torch.zeros(5)},
        ValueError,
        ["log_decay has shape [5]", "[H] = [6]", "[B, T, H, K] = [2, 4, 6, 3]"],
    ),
    (
        {"log_decay": torch.zeros(2, 4, 3)},
        ValueError,
        ["log_decay has shape [2, 4, 3]", "[B, T, H] = [2, 4, 6]"],
    ),
    ({"log_decay": torch.zeros(6, dtype=torch.int32)}, TypeError, ["log_decay has dtype torch.int32"]),
    ({"log_decay": 0.5}, TypeError, ["log_decay is float", "tensor"]),
    ({"log_decay": torch.full((6,), 0.5)}, ValueError, ["log_decay contains 0.5", "[-inf, 0]"]),
    ({"log_decay": torch.full((2, 4, 6, 3), math.nan)}, ValueError, ["log_decay contains nan", "[-inf, 0]"]),
    (
        {"log_decay": OuterDecay(A4[:, :3], -torch.rand(6, 3))},
        ValueError,
        ["log_decay.dt has shape [2, 3, 6]", "[B, T, H]"],
    ),
    (
        {"log_decay": OuterDecay(A4, -torch.rand(6, 4))},
        ValueError,
        ["log_decay.A has shape [6, 4]", "[H, K]"],
    ),
    (
        {"log_decay": OuterDecay(A4, torch.rand(6, 3) + 1)},
        ValueError,
        ["log_decay.A contains", "[-inf, 0]"],
    ),
    (
        {"log_decay": OuterDecay(A4 - 2, -torch.rand(6, 3))},
        ValueError,
        ["log_decay.dt contains", "not negative"],
    ),
    (
        {"log_decay": OuterDecay(A4 / 0, -torch.rand(6, 3))},
        ValueError,
        ["log_decay.dt contains inf", "finite"],
    ),
    (
        {"log_decay": OuterDecay(A4 * 0 - 5e-5, -1e6 * torch.ones(6, 3))},
        ValueError,
        ["log_decay.dt contains", "beside an A"],
    ),
    ({"log_decay_v": torch.zeros(6)}, ValueError, ["log_decay_v has shape [6]", "[H, V] = [6, 5]"]),
    ({"log_decay_v": torch.full((6, 5), 0.1)}, ValueError, ["log_decay_v contains 0.1"]),
    (
        {"initial_state": torch.zeros(2, 6, 5, 3)},
        ValueError,
        ["initial_state has shape [2, 6, 5, 3]", "[2, 6, 3, 5]"],
    ),
    ({"beta": torch.ones(2, 4)}, ValueError, ["beta has shape [2, 4]", "[B, T, H] = [2, 4, 6]"]),
    ({"beta": 1.0}, TypeError, ["beta is float", "tensor"]),
    (
        {"beta": torch.ones(2, 4, 6), "log_decay_v": torch.zeros(6, 5)},
        ValueError,
        ["beta was given together with log_decay_v", "one of the two"],
    ),
    (
        {"beta": torch.ones(2, 4, 6), "erase": (torch.ones(2, 4, 1, 3),) * 2},
        ValueError,
        ["erase was given together with beta", "one of the two"],
    ),
    ({"beta": torch.ones(2, 4, 6), "form": "scan"}, ValueError, ["form", "'scan'", "'recurrent'"]),
    ({"erase": torch.ones(2, 4, 1, 3)}, TypeError, ["erase is Tensor", "a pair (x, y)"]),
    (
        {"erase": (torch.ones(2, 4, 1, 3), torch.ones(2, 4, 4, 3))},
        ValueError,
        ["erase[y] has 4 heads", "divisor of v's 6 heads"],
    ),
    (
        {"erase": (torch.ones(2, 4, 1, 5), torch.ones(2, 4, 1, 3))},
        ValueError,
        ["erase[x] has shape [2, 4, 1, 5]", "key dimension of k, 3"],
    ),
    (
        {"erase": (torch.ones(2, 4, 1, 3).double(), torch.ones(2, 4, 1, 3))},
        TypeError,
        ["erase[x] has dtype torch.float64", "dtype of v"],
    ),
    ({"cu_seqlens": torch.tensor([0, 4])}, ValueError, ["cu_seqlens", "batch size 2", "B = 1"]),
    ({"mask": torch.ones(2, 4)}, TypeError, ["mask has dtype torch.float32", "bool"]),
    ({"mask": torch.ones(2, 5, dtype=torch.bool)}, ValueError, ["mask has shape [2, 5]", "[2, 4]"]),
    ({"form": "chunked"}, ValueError, ["form is 'chunked'", "'parallel'", "'recurrent'"]),
    ({"read": "now"}, ValueError, ["read is 'now'", "'after'", "'before'"]),
    ({"backend": "cuda"}, ValueError, ["backend is 'cuda'", "'triton'"]),
    ({"backend": "triton"}, ValueError, ["backend is 'triton'", "cpu", "TRITON_INTERPRET=1"]),
    ({"backend": "triton", "form": "scan"}, ValueError, ["form is 'scan'", "'chunk'"]),
    ({"schedule": "best"}, ValueError, ["schedule is 'best'", "'split'"]),
    ({"precision": "bf16"}, ValueError, ["precision is 'bf16'", "'tf32'"]),
    ({"chunk_size": 0}, ValueError, ["chunk_size is 0", "from 1"]),
    ({"chunk_size": 2.5}, TypeError, ["chunk_size is 2.5"]),
    ({"scale": float("nan")}, ValueError, ["scale is nan", "finite"]),
    ({"scale": "big"}, TypeError, ["scale is 'big'", "a number"]),
    ({"reverse": 1}, TypeError, ["reverse is 1", "True or False"]),
]


@pytest.mark.parametrize("changed, kind, says", CASES, ids=lambda x: None)
def test_recurrence_refuses(changed, kind, says):
    recurrence(**good())  # the rest of the arguments are right
    with pytest.raises(kind, match=".*".join(map(re.escape, says))):
        recurrence(**{**good(), **changed})


@pytest.mark.parametrize(
    "cu, says",
    [
        (torch.tensor([0, 2, 3]), "cu_seqlens is [0, 2, 3]"),
        (torch.tensor([1, 4]), "cu_seqlens is [1, 4]"),
        (torch.tensor([0, 3, 2, 4]), "cu_seqlens is [0, 3, 2, 4]"),
        (torch.tensor([0.0, 4.0]), "cu_seqlens has dtype torch.float32"),
        (torch.tensor([[0, 4]]), "cu_seqlens has shape [1, 2]"),
        (torch.tensor([4]), "cu_seqlens has shape [1]"),
        (torch.tensor([0, 4], device="meta"), "cu_seqlens is on meta"),
        ([0, 4], "cu_seqlens is list"),
    ],
)
def test_packed_sequences_refuse(cu, says):
    x = torch.randn(1, 4, 1, 2)
    with pytest.raises((ValueError, TypeError), match=re.escape(says)):
        recurrence(x, x, x, cu_seqlens=cu)


STEP_CASES = [
    ({"q_t": torch.randn(2, 4, 2, 3)}, ValueError, ["q_t has shape", "[B, Hq, K]"]),
    ({"k_t": torch.randn(2, 4, 3)}, ValueError, ["k_t has 4 heads"]),
    ({"log_decay_t": torch.zeros(2, 3)}, ValueError, ["log_decay_t has shape [2, 3]", "[B, H] = [2, 6]"]),
    (
        {"log_decay_t": OuterDecay(torch.rand(2, 3), -torch.rand(6, 3))},
        ValueError,
        ["log_decay_t.dt has shape [2, 3]", "[B, H] = [2, 6]"],
    ),
    (
        {"log_decay_t": OuterDecay(torch.rand(2, 6), -torch.rand(6, 4))},
        ValueError,
        ["log_decay_t.A has shape [6, 4]", "[H, K] = [6, 3]"],
    ),
    ({"log_decay_t": OuterDecay(torch.rand(2, 6), None)}, TypeError, ["log_decay_t.A is NoneType"]),
    ({"log_decay_t": OuterDecay(None, -torch.rand(6, 3))}, TypeError, ["log_decay_t.dt is NoneType"]),
    (
        {"log_decay_t": OuterDecay(torch.rand(2, 6, 3), -torch.rand(6, 3))},
        ValueError,
        ["log_decay_t.dt has shape [2, 6, 3]"],
    ),
    ({"log_decay_t": torch.zeros(2, 6).double().to(torch.int32)}, TypeError, ["log_decay_t has dtype"]),
    ({"log_decay_t": torch.zeros(2, 6, device="meta")}, ValueError, ["log_decay_t is on meta"]),
    ({"log_decay_t": 0.5}, TypeError, ["log_decay_t is float"]),
    ({"log_decay_v_t": torch.zeros(2, 6, 3)}, ValueError, ["log_decay_v_t has shape", "[B, H, V]"]),
    (
        {"log_decay_v_t": torch.zeros(6, 5), "beta_t": torch.zeros(2, 6)},
        ValueError,
        ["beta_t was given together with log_decay_v_t"],
    ),
    ({"beta_t": torch.zeros(2, 3)}, ValueError, ["beta_t has shape [2, 3]", "[B, H] = [2, 6]"]),
    ({"erase_t": (torch.zeros(2, 1, 3),)}, TypeError, ["erase_t is tuple", "a pair (x, y)"]),
    ({"state": torch.zeros(2, 6, 3, 3)}, ValueError, ["state has shape", "[2, 6, 3, 5]"]),
    ({"state": torch.zeros(2, 6, 3)}, ValueError, ["state has shape"]),
    ({"state": 0}, TypeError, ["state is int"]),
    ({"mask": torch.ones(3, dtype=torch.bool)}, ValueError, ["mask has shape [3]", "[2]"]),
    ({"q_t": torch.randn(1, 3, 3), "k_t": torch.randn(1, 3, 3)}, ValueError, ["q_t has shape [1, 3, 3]"]),
    ({"q_t": torch.randn(2, 4, 3), "k_t": torch.randn(2, 4, 3)}, ValueError, ["q_t has 4 heads"]),
    ({"q_t": torch.randn(2, 0, 3), "k_t": torch.randn(2, 0, 3)}, ValueError, ["q_t has 0 heads"]),
    ({"q_t": torch.randn(2, 3, 0), "k_t": torch.randn(2, 3, 0)}, ValueError, ["k_t has shape [2, 3, 0]"]),
    ({"v_t": torch.randn(2, 6, 0)}, ValueError, ["v_t has shape [2, 6, 0]"]),
    ({"v_t": torch.randn(2, 6, 5).double()}, TypeError, ["q_t has dtype torch.float32"]),
    ({"v_t": torch.randn(6, 5)}, ValueError, ["v_t has shape [6, 5]"]),
    ({"read": ["after"]}, ValueError, ["read is"]),
    ({"scale": True}, TypeError, ["scale is True"]),
    ({"scale": math.nan}, ValueError, ["scale is nan"]),
    ({"read": "later"}, ValueError, ["read is 'later'"]),
    ({"scale": math.inf}, ValueError, ["scale is inf", "finite"]),
    ({"inplace": 1}, TypeError, ["inplace is 1", "True or False"]),
    ({"backend": "cuda"}, ValueError, ["backend is 'cuda'", "'triton'"]),
]


@pytest.mark.parametrize("changed, kind, says", STEP_CASES, ids=lambda x: None)
def test_step_refuses(changed, kind, says):
    for heads in (2, 3):  # where q's heads are k's, `step` looks at its arguments in a shorter way first
        arguments = {
            "q_t": torch.randn(2, heads, 3),
            "k_t": torch.randn(2, 3, 3),
            "v_t": torch.randn(2, 6, 5),
        }
        step(**arguments)
        with pytest.raises(kind, match=".*".join(map(re.escape, says))):
            step(**{**arguments, **changed})


def test_step_checks_values_on_request():
    x = torch.randn(1, 1, 2)
    bad = torch.full((1, 1), math.nan)
    step(x, x, x, bad)  # a look at the values would cost as much as the step
    with check_values(), pytest.raises(ValueError, match="log_decay_t contains nan"):
        step(x, x, x, bad)
    with check_values(), pytest.raises(ValueError, match="log_decay_v_t contains 0"):
        step(x, x, x, None, torch.full((1, 1, 2), 0.5))
    above, below = torch.full((1, 2), 0.5), torch.full((1, 2), -0.5)
    for outer, says in ((OuterDecay(-bad, below), "dt"), (OuterDecay(torch.ones(1, 1), above), "A")):
        with check_values(), pytest.raises(ValueError, match=f"log_decay_t.{says} contains"):
            step(x, x, x, outer)
    with check_values():
        step(x, x, x, OuterDecay(torch.ones(1, 1), below), below[:, None])


def test_rounding_above_zero_is_accepted():
    x = torch.randn(1, 4, 1, 2)
    recurrence(x, x, x, torch.full((1, 4, 1), 1e-6))
