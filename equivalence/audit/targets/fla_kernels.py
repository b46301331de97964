"""How the kernels of flash-linear-attention are called on a GPU, by file and function under `fla/ops`.

Written from the signatures and docstrings of 0.6.0. Sequences are computed in chunks of 64, single tokens by
the fused recurrent kernel: that pair is one mixer. Their products are rounded, to TF32 or to bfloat16, and
what is compared is accepted up to a few of those roundings: a wrong term shows, a lost digit does not.
"""

from __future__ import annotations

from dataclasses import replace

from .adapter import Adapter, Argument, Output, State

Q = Argument("B T H K")
K = Argument("B T H K", "unit")
V = Argument("B T H V")
PER_HEAD = Argument("B T H", "log_decay", at_least="float32")
PER_KEY = Argument("B T H K", "log_decay", at_least="float32")
BETA = Argument("B T H", "gate")
STATE = (State("B H K V"),)
KEEPS = {"output_final_state": True}
ROUNDED = {
    "gradients": "its products are rounded: finite differences would see that",
    "state_gradients": "its products are rounded: finite differences would see that",
}


def _floats(arguments: dict[str, Argument], step: str, step_adapter: Adapter | None = None) -> Adapter:
    """Of one that takes float32, with products in TF32."""
    return Adapter(
        arguments,
        state=STATE,
        constants=KEEPS,
        sizes={"K": 32, "V": 32, "M": 32},
        cu_seqlens="cu_seqlens",
        lengths=(3, 65, 130),
        step=step,
        step_adapter=step_adapter,
        dtypes=("float32", "bfloat16"),
        device="cuda",
        tolerance=1e-2,
        unsupported=ROUNDED,
    )


def _halves(arguments: dict[str, Argument], step: str) -> Adapter:
    """Of one that takes bfloat16."""
    return replace(_floats(arguments, step), dtypes=("bfloat16",), tolerance=5e-2)


_gla = _floats({"q": Q, "k": Q, "v": V, "g": PER_KEY}, "fla.ops.gla.fused_recurrent:fused_recurrent_gla")
_gla_step = replace(
    _gla, arguments={"q": Q, "k": Q, "v": V, "gk": replace(PER_KEY, stands_for="g")}, step=None
)

KERNELS: dict[str, Adapter] = {
    "simple_gla.chunk:chunk_simple_gla": _floats(
        {"q": Q, "k": Q, "v": V, "g": PER_HEAD},
        "fla.ops.simple_gla.fused_recurrent:fused_recurrent_simple_gla",
    ),
    "gla.chunk:chunk_gla": replace(_gla, step_adapter=_gla_step),
    "retention.chunk:chunk_retention": _floats(
        {"q": Q, "k": Q, "v": V}, "fla.ops.retention.fused_recurrent:fused_recurrent_retention"
    ),
    "rwkv6.chunk:chunk_rwkv6": _floats(
        {"r": Q, "k": Q, "v": V, "w": PER_KEY, "u": Argument("H K")},
        "fla.ops.rwkv6.fused_recurrent:fused_recurrent_rwkv6",
    ),
    "gsa.chunk:chunk_gsa": replace(
        _floats(
            {"q": Q, "k": Q, "v": V, "s": Argument("B T H M"), "g": Argument("B T H M", "log_decay")},
            "fla.ops.gsa.fused_recurrent:fused_recurrent_gsa",
        ),
        state=(State("B H K M", at=(1, 0), part=0), State("B H M V", at=(1, 1), part=1)),
    ),
    "hgrn.chunk:chunk_hgrn": replace(
        _floats(
            {"x": Argument("B T D"), "g": Argument("B T D", "log_decay")},
            "fla.ops.hgrn.fused_recurrent:fused_recurrent_hgrn",
        ),
        output=Output("B T D"),
        state=(State("B D"),),
        sizes={"D": 32},
        cu_seqlens=None,
    ),
    "delta_rule.chunk:chunk_delta_rule": _halves(
        {"q": Q, "k": K, "v": V, "beta": BETA},
        "fla.ops.delta_rule.fused_recurrent:fused_recurrent_delta_rule",
    ),
    "gated_delta_rule.chunk:chunk_gated_delta_rule": _halves(
        {"q": Q, "k": K, "v": V, "g": PER_HEAD, "beta": BETA},
        "fla.ops.gated_delta_rule.fused_recurrent:fused_recurrent_gated_delta_rule",
    ),
    "kda.chunk:chunk_kda": _halves(
        {"q": Q, "k": K, "v": V, "g": PER_KEY, "beta": BETA},
        "fla.ops.kda.fused_recurrent:fused_recurrent_kda",
    ),
    "comba.chunk:chunk_comba": _halves(
        {"q": Q, "k": K, "v": V, "p": K, "g": PER_HEAD, "beta": BETA},
        "fla.ops.comba.fused_recurrent:fused_recurrent_comba",
    ),
    "gdn2.chunk:chunk_gdn2": _halves(
        {
            "q": Q,
            "k": K,
            "v": V,
            "g": PER_KEY,
            "b": Argument("B T H K", "gate"),
            "w": Argument("B T H V", "gate"),
        },
        "fla.ops.gdn2.fused_recurrent:fused_recurrent_gdn2",
    ),
}
