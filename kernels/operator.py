"""The public operator: one recurrence, and one step of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import checks, triton_core
from .forms import tiny
from .one_step import formula, plain_formula, step_in_place_op, step_op
from .ops import accumulation_dtype, recurrence_op
from .order import READS

FORMS = ("auto", "parallel", "chunk", "recurrent", "scan")
DELTA_FORMS = FORMS[:-1]  # with beta or erase
BACKENDS = ("auto", "torch", "triton", "numba")
STEP_BACKENDS = BACKENDS[:-1]
SCHEDULES = ("auto", "fused", "split")
PRECISIONS = (None, "tf32")


class OuterDecay(NamedTuple):
    """The log-decay dt·A over keys, kept as its factors (Mamba's ΔA; Gu & Dao 2023, eq. 4).

    dt [B, T, H] (in `step`, [B, H]): finite, not negative. A [H, K]: not positive; -inf is decay 0
    wherever dt > 0, and none where dt = 0.
    """

    dt: Tensor
    A: Tensor


def recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | OuterDecay | None = None,
    log_decay_v: Tensor | None = None,
    *,
    beta: Tensor | None = None,
    erase: tuple[Tensor, Tensor] | None = None,
    initial_state: Tensor | None = None,
    scale: float = 1.0,
    read: str = "after",
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
    mask: Tensor | None = None,
    form: str = "auto",
    backend: str = "auto",
    schedule: str = "auto",
    precision: str | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence over a whole sequence, for every batch and head:

        S_t = (a_t b_tᵀ) ∘ S_{t-1} + k_t v_tᵀ        o_t = scale · S_tᵀ q_t

    and, with `beta` (the delta rule) or `erase` = (x, y) (any transition that is diagonal plus rank one),

        S_t = S̃ + β_t k_t (v_t - S̃ᵀ k_t)ᵀ,  S̃ = a_t ∘ S_{t-1}
        S_t = (diag(a_t) + x_t y_tᵀ) S_{t-1} + k_t v_tᵀ

    Args:
        q: queries [B, T, Hq, K]. Hq divides H: head h uses query head h // (H / Hq), without copies.
        k: keys [B, T, Hk, K]; Hk divides H.
        v: values [B, T, H, V]. q, k and v share one dtype: float64, float32, bfloat16 or float16.
        log_decay: natural log of a, the decay over keys, in [-inf, 0]: None (no decay), [H],
            [B, T, H], [B, T, H, K], or `OuterDecay(dt [B, T, H], A [H, K])`. -inf is a reset.
        log_decay_v: natural log of b, the decay over values: None, [H, V] or [B, T, H, V].
        beta: β [B, T, H], the share of what k retrieves that v replaces: the delta rule. Not together with
            log_decay_v or erase.
        erase: (x, y), [B, T, Hx, K] and [B, T, Hy, K] in v's dtype, Hx and Hy dividing H: before k vᵀ is
            added, x times what y reads from S_{t-1} (not yet decayed) is. The delta rule is
            x = -β k, y = a ∘ k, v ← β v. Not together with log_decay_v or beta.
        initial_state: S_0 [B, H, K, V], or [N, H, K, V] when packed. None is zero.
        scale: factor of the outputs.
        read: "after" reads S_t, "before" reads S_{t-1}.
        reverse: let time run from the last step to the first.
        cu_seqlens: packed sequences: int offsets [N + 1] from 0 to T, with B = 1. Each sequence
            starts from its own initial state; nothing passes between them.
        mask: [B, T] bool. A step where it is False leaves the state untouched: no write and no
            decay, whatever k, v and the decays hold there. Its output is q read from that state.
        form: "parallel", "chunk", "recurrent" or "scan", the same function each; "auto" takes
            the one with the least estimated cost (`kernels/choose.py`). With beta or erase there is no
            "scan": its elements would be K x K matrices.
        backend: "torch"; "triton"; "numba", kernels for the CPU that go step by step, without beta or erase;
            or "auto": triton for tensors on a GPU, and on the CPU, where Numba is installed, numba for long
            sequences of heads whose keys or values are fewer than 16 (form and chunk_size left open); torch
            otherwise.
        schedule: of the Triton kernels: "fused" keeps the state on chip through the sequence,
            "split" computes the states between chunks first and then all outputs at once.
        precision: None computes matrix products in full for the dtype; "tf32" lets float32
            inputs use tf32 tensor cores on a GPU.
        chunk_size: steps per chunk (by default 64; 32 where torch erases, with beta or erase).

    Returns:
        o [B, T, H, V] in v's dtype, and the final state [B or N, H, K, V] in the accumulation
        dtype (float32, or float64 where any input is). Every tensor argument has a gradient, in
        reverse mode and to any order; that of a log-decay is exact, and exactly 0, where the decay is 0.
        Operands are taken to be finite: in the forms that multiply matrices, a NaN reaches all outputs
        of its chunk.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what is accepted. Log-decays
            which are NaN or greater than rounding (1e-4) are refused by the torch backend on the CPU,
            elsewhere inside `mixerzoo.kernels.check_values()`.

    Source: the common recurrence of RetNet (Sun et al. 2023, its recurrent form), GLA (Yang et al. 2024,
        section 4.1) and Mamba-2 (Dao & Gu 2024); the decay over values is GLA's β. The delta rule is that of
        Schlag et al. 2021 (arXiv:2102.11174, eq. 24), with decay Yang et al. 2024 (arXiv:2412.06464, eq. 10);
        the general form that of RWKV-7 (Peng et al. 2025, arXiv:2503.14456).
    """
    checks.operands(q, k, v, time=True)
    device, (B, T, H, V), K = v.device, v.shape, k.shape[3]
    outer = None
    if isinstance(log_decay, OuterDecay):
        checks.shaped("log_decay.dt", log_decay.dt, device, ("[B, T, H]", (B, T, H)))
        checks.shaped("log_decay.A", log_decay.A, device, ("[H, K]", (H, K)))
        log_decay, outer = log_decay
    elif log_decay is not None:
        checks.shaped(
            "log_decay",
            log_decay,
            device,
            ("[H]", (H,)),
            ("[B, T, H]", (B, T, H)),
            ("[B, T, H, K]", (B, T, H, K)),
        )
    if log_decay_v is not None:
        checks.shaped("log_decay_v", log_decay_v, device, ("[H, V]", (H, V)), ("[B, T, H, V]", (B, T, H, V)))
    checks.delta(beta, erase, log_decay_v, v, K, ("[B, T, H]", (B, T, H)), "")
    if form == "scan" and (beta is not None or erase is not None):
        checks.one_of("form with beta or erase", form, DELTA_FORMS)
    sequences = B
    if cu_seqlens is not None:
        sequences = checks.seqlens(cu_seqlens, v).shape[0] - 1
    if initial_state is not None:
        written = "[B, H, K, V]" if cu_seqlens is None else "[N, H, K, V]"
        checks.shaped("initial_state", initial_state, device, (written, (sequences, H, K, V)))
    checks.number("scale", scale)
    checks.flag("reverse", reverse)
    checks.one_of("read", read, tuple(READS))
    checks.one_of("form", form, FORMS)
    checks.one_of("backend", backend, BACKENDS)
    checks.one_of("schedule", schedule, SCHEDULES)
    checks.one_of("precision", precision, PRECISIONS)
    checks.chunk_size(chunk_size)
    checks.backend(backend, form, v, erased=0 if beta is None and erase is None else K)
    x, y = erase or (None, None)
    if mask is not None:
        mask = checks.valid_mask("mask", mask, (B, T), "[B, T]", device)
    operands = (q, k, v, log_decay, outer, log_decay_v, beta, x, y, initial_state)
    checks.reverse_mode(*operands)
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in operands)
    out, state, _ = recurrence_op(
        *operands,
        cu_seqlens,
        mask,
        float(scale),
        read,
        reverse,
        form,
        backend,
        schedule,
        precision,
        chunk_size,
        save,
    )
    return out, state


def step(
    q_t: Tensor,
    k_t: Tensor,
    v_t: Tensor,
    log_decay_t: Tensor | OuterDecay | None = None,
    log_decay_v_t: Tensor | None = None,
    *,
    beta_t: Tensor | None = None,
    erase_t: tuple[Tensor, Tensor] | None = None,
    state: Tensor | None = None,
    scale: float = 1.0,
    read: str = "after",
    mask: Tensor | None = None,
    inplace: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """One step of `recurrence`: what it does to the next token, given the state so far.

    Args:
        q_t, k_t, v_t: [B, Hq, K], [B, Hk, K], [B, H, V].
        log_decay_t: None, [H], [B, H], [B, H, K] or `OuterDecay(dt [B, H], A [H, K])`.
        log_decay_v_t: None, [H, V] or [B, H, V].
        beta_t: [B, H]. erase_t: (x, y), [B, Hx, K] and [B, Hy, K].
        state: S_{t-1} [B, H, K, V]; None is zero.
        scale, read: as in `recurrence`.
        mask: [B] bool; where False the state stays as it was.
        inplace: write S_t into `state` and return that very tensor. It must have the accumulation
            dtype already, and nothing may need a gradient.
        backend: "torch", a formula with gradients of any order; "triton", one kernel that reads and
            writes the state once, without gradients; "auto": triton for tensors on a GPU where no
            gradient is needed, torch otherwise and inside torch.compile, which fuses the formula.

    Returns:
        o_t [B, H, V] in v_t's dtype, and S_t [B, H, K, V] in the accumulation dtype.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what is accepted. Values are
            checked inside `mixerzoo.kernels.check_values()` only: a look at them would cost as
            much as the step.

    Source: as `recurrence`.
    """
    la, A, lb = log_decay_t, None, log_decay_v_t
    needs_grad, plain = False, mask is None and erase_t is None and (backend == "auto" or backend == "torch")
    if isinstance(la, OuterDecay):
        la, A = la
        plain = plain and la is not None and A is not None
    if plain and checks.plain_token(q_t, k_t, v_t, la, A, lb, beta_t, state, scale, read, inplace):
        if A is None and state is not None and (k_t.shape[1] == v_t.shape[1] or not tiny(state)):
            return plain_formula(q_t, k_t, v_t, la, lb, beta_t, state, scale, read, inplace)
    else:
        options = scale, read, mask, inplace, backend
        needs_grad = _check_step(q_t, k_t, v_t, log_decay_t, lb, beta_t, erase_t, state, *options)
    x, y = erase_t or (None, None)
    if backend == "auto" and v_t.is_cuda and not (needs_grad or torch.compiler.is_compiling()):
        backend = "triton" if triton_core.available(v_t) else "torch"
    if backend == "triton":
        operands = (q_t, k_t, v_t, la, A, lb, beta_t, x, y, state)
        if inplace and state is not None:
            return step_in_place_op(*operands, mask, float(scale), read), state
        return step_op(*operands, mask, float(scale), read)
    return formula(q_t, k_t, v_t, la, A, lb, beta_t, x, y, state, mask, scale, read, inplace)


def _check_step(
    q_t: Tensor,
    k_t: Tensor,
    v_t: Tensor,
    log_decay_t: Tensor | OuterDecay | None,
    log_decay_v_t: Tensor | None,
    beta_t: Tensor | None,
    erase_t: tuple[Tensor, Tensor] | None,
    state: Tensor | None,
    scale: float,
    read: str,
    mask: Tensor | None,
    inplace: bool,
    backend: str,
) -> bool:
    """The arguments of `step`, refused or not; whether a gradient is needed."""
    checks.operands(q_t, k_t, v_t, time=False)
    device, (B, H, V), K = v_t.device, v_t.shape, k_t.shape[2]
    la, A = log_decay_t, None
    if isinstance(la, OuterDecay):
        checks.shaped("log_decay_t.dt", la.dt, device, ("[B, H]", (B, H)))
        checks.shaped("log_decay_t.A", la.A, device, ("[H, K]", (H, K)))
        la, A = la
    elif la is not None:
        checks.shaped("log_decay_t", la, device, ("[H]", (H,)), ("[B, H]", (B, H)), ("[B, H, K]", (B, H, K)))
    lb = log_decay_v_t
    if lb is not None:
        checks.shaped("log_decay_v_t", lb, device, ("[H, V]", (H, V)), ("[B, H, V]", (B, H, V)))
    checks.delta(beta_t, erase_t, lb, v_t, K, ("[B, H]", (B, H)), "_t")
    if state is not None:
        checks.shaped("state", state, device, ("[B, H, K, V]", (B, H, K, V)))
    checks.number("scale", scale)
    checks.one_of("read", read, tuple(READS))
    checks.flag("inplace", inplace)
    checks.one_of("backend", backend, STEP_BACKENDS)
    if mask is not None:
        checks.valid_mask("mask", mask, (B,), "[B]", device)
    x, y = erase_t or (None, None)
    operands = (q_t, k_t, v_t, la, A, lb, beta_t, x, y, state)
    checks.reverse_mode(*operands)
    needs_grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in operands)
    if inplace:
        checks.writable_state(state, accumulation_dtype(*operands), needs_grad)
    if backend == "triton" and needs_grad:
        raise ValueError(
            "backend is 'triton' where a gradient is needed, which its step does not have; accepted: "
            "'auto' or 'torch', or a call under torch.no_grad()"
        )
    checks.backend(backend, "auto", v_t)

    if checks.always_checking():
        if A is not None and la is not None:
            checks.outer_values(la, A, "log_decay_t")
        else:
            checks.log_values("log_decay_t", la)
        checks.log_values("log_decay_v_t", lb)
    return needs_grad
