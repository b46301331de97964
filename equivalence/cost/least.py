"""The least that a call could cost: every input read once, every output written once, no needless product.

Bytes. Forward: all operands in, o and the final state out. Backward: all operands and the gradients of the
outputs in, one gradient out for each operand that has one. Expanded operands count their real elements. Of
padding, k, v and the decays need not be read.

Products. Per step and head, with K keys and V values (a multiplication and an addition are 2 FLOPs):

    recurrent form   forward   4 K V            update k v^T and read S^T q
                     backward 10 K V            the states again; q, k, v and the state's gradients: do S^T,
                                                dS v, dS^T k, and dS += q do^T
    chunk form       as above, and for each of the (C + 1) / 2 steps of a chunk of C seen on average
                     forward   2 K + 2 V        q k^T, and it times v
                     backward  6 K + 4 V        q k^T, do v^T; the gradients of q, k and of v

The delta rule (beta) and its general form (erase) add to that, with (C - 1) / 2 steps seen on average by what
is read before it is written over:

    recurrent form   forward   2 K V            read S^T k;              erase: 4 K V, read S^T y and write x
                     backward  6 K V            that again; dR S^T, and dS += k dR^T
                                                erase: 12 K V, both again; x and its value from dS; y; dS
    chunk form       forward   2 K + 2 V        k k^T, and it times the new values (the solution, by rows)
                     backward  6 K + 6 V        that again; the transposed solution; dR u^T; k's gradients
                     erase: of q, x as of q, k; of y, x and of y, k as of q, k, and the values again

C is CHUNK = 16, the least number of rows of a tensor-core product; heads below 16 keys or values do not use
tensor cores, and have the recurrent form. The multiplications by decays are not counted: they are not
products of matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .operations import real_bytes
from .operators import Call

CHUNK = 16


@dataclass(frozen=True)
class Least:
    """bytes, and FLOPs of products, of forward or backward."""

    bytes: int
    flops: int


def least(call: Call, outputs: list[Tensor]) -> tuple[Least, Least]:
    """Of forward and of backward. outputs: o, and the final state."""
    inputs = sum(read_bytes(call, name, x) for name, x in call.tensors())
    o, state = outputs
    gradients = sum(real_bytes(x) for x in call.differentiable())
    into = real_bytes(o) + (real_bytes(state) if call.final else 0)
    forward, backward = products(call)
    return Least(inputs + real_bytes(o) + real_bytes(state), forward), Least(
        inputs + into + gradients, backward
    )


def read_bytes(call: Call, name: str, x: Tensor) -> int:
    """Bytes of an operand. What padding holds need not be read."""
    mask = call.operands.get("mask")
    B, T = call.operands["v"].shape[:2]
    if mask is None or name in ("q", "mask") or x.shape[:2] != (B, T):
        return real_bytes(x)
    return real_bytes(x) * int(mask.sum()) // mask.numel()


def products(call: Call) -> tuple[int, int]:
    """FLOPs of matrix products, forward and backward."""
    B, T, H, V = call.operands["v"].shape
    K = call.operands["k"].shape[3]
    forward, backward = 4 * K * V, 10 * K * V
    seen, before = (CHUNK + 1, CHUNK - 1) if min(K, V) >= 16 else (0, 0)
    forward += seen * (K + V)
    backward += seen * (3 * K + 2 * V)
    if call.operands.get("beta") is not None:
        forward += 2 * K * V + before * (K + V)
        backward += 6 * K * V + before * (3 * K + 3 * V)
    if call.operands.get("erase") is not None:
        forward += 4 * K * V + (seen + 2 * before) * (K + V)
        backward += 12 * K * V + seen * (3 * K + 2 * V) + before * (6 * K + 6 * V)
    return B * T * H * forward, B * T * H * backward
