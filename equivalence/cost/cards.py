"""What cards can do, from their makers' papers: the one table of rates.

Rates are peaks, of dense products, at boost clocks; no program reaches them.

Sources, by card:
    A100    SXM, 80 GB. "NVIDIA A100 Tensor Core GPU" datasheet; "NVIDIA A100 Tensor Core GPU Architecture"
            whitepaper (108 SMs, 1410 MHz, shared memory).
    H100    SXM5, 80 GB. "NVIDIA H100 Tensor Core GPU Architecture" whitepaper (132 SMs; dense rates);
            "NVIDIA H100 Tensor Core GPU" datasheet (3.35 TB/s).
    H200    SXM. "NVIDIA H200 Tensor Core GPU" datasheet: H100 but for its memory (4.8 TB/s).
    B200    in HGX B200. "NVIDIA Blackwell" datasheet (HGX B200 column; its tensor-core rates are with
            sparsity, here halved). SMs: 148, as CUDA reports.
    MI300X  "AMD Instinct MI300X Accelerator" data sheet; "AMD CDNA 3 Architecture" white paper (304 CUs).
Per processor (threads, warps, registers, shared memory, special functions: 16 per SM and clock): "CUDA C++
Programming Guide", compute capabilities and throughput of arithmetic instructions; for MI300X the CDNA 3
instruction set manual and LLVM's "User Guide for AMDGPU Backend" (512 registers per lane of a SIMD, in
eights). MI300X's special functions are taken to run in a quarter of its lanes, which AMD does not state.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Processor:
    """An SM, or a compute unit.

    warp: threads of a warp; warps, programs: the most of each at a time. parts: SIMDs, each with registers
    (of 32 bits, for all lanes) of its own, given to a warp in multiples of register_unit. shared: bytes; a
    program takes shared_own more than it asks for, in multiples of shared_unit. special: special functions
    per clock.
    """

    warp: int
    warps: int
    programs: int
    parts: int
    registers: int
    register_unit: int
    shared: int
    shared_own: int
    shared_unit: int
    special: int = 16


@dataclass(frozen=True)
class Card:
    """A card. target: what is compiled for it. bandwidth: bytes per second. rates: FLOP per second of matrix
    products by format, and of vector arithmetic ("vector fp32", "vector fp64"). clock: Hz."""

    name: str
    target: str
    processors: int
    clock: float
    bandwidth: float
    rates: dict[str, float]
    processor: Processor

    @property
    def special(self) -> float:
        """Special functions per second."""
        return self.processors * self.processor.special * self.clock


def _rates(
    bf16: float, tf32: float, fp64: float, vector32: float, vector64: float, fp32: float | None = None
) -> dict[str, float]:
    """In FLOP/s, from TFLOP/s. fp16 is as bf16; fp32: of products, where matrix units do them."""
    rates = {"bf16": bf16, "fp16": bf16, "tf32": tf32, "fp32": fp32 or vector32, "fp64": fp64,
             "vector fp32": vector32, "vector fp64": vector64}  # fmt: skip
    return {name: rate * 1e12 for name, rate in rates.items()}


_SM_80 = Processor(32, 64, 32, 4, 16384, 256, 164 * 1024, 1024, 128)
_SM_90 = Processor(32, 64, 32, 4, 16384, 256, 228 * 1024, 1024, 128)
_CDNA_3 = Processor(64, 32, 32, 4, 32768, 512, 64 * 1024, 0, 512)

CARDS = {
    card.name: card
    for card in (
        Card("A100", "sm_80", 108, 1.41e9, 2.039e12, _rates(312, 156, 19.5, 19.5, 9.7), _SM_80),
        Card("H100", "sm_90", 132, 1.98e9, 3.35e12, _rates(989.4, 494.7, 66.9, 66.9, 33.5), _SM_90),
        Card("H200", "sm_90", 132, 1.98e9, 4.8e12, _rates(989.4, 494.7, 66.9, 66.9, 33.5), _SM_90),
        Card("B200", "sm_100", 148, 1.98e9, 7.7e12, _rates(2250, 1100, 37, 75, 37), _SM_90),
        Card(
            "MI300X", "gfx942", 304, 2.1e9, 5.3e12,
            _rates(1307.4, 653.7, 163.4, 163.4, 81.7, fp32=163.4), _CDNA_3,
        ),
    )
}  # fmt: skip
