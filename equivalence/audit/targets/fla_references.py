"""How the references of flash-linear-attention are called, by file and function under `fla/ops`.

Written for 0.6.0. Where a reference computes in chunks, single tokens are those of the recurrent one beside
it: that pair is one mixer. Chunks are small, so that short sequences have several.
"""

from __future__ import annotations

from dataclasses import replace

from .adapter import Adapter, Argument, Output, State

# Time second.
Q = Argument("B T H K")
K = Argument("B T H K", "unit")
V = Argument("B T H V")
PER_HEAD = Argument("B T H", "log_decay")
PER_KEY = Argument("B T H K", "log_decay")
BETA = Argument("B T H", "gate")
# Heads second.
q = Argument("B H T K")
k = Argument("B H T K", "unit")
v = Argument("B H T V")
per_key = Argument("B H T K", "log_decay")
beta = Argument("B H T", "gate")
o = Output("B H T V")

STATE = (State("B H K V"),)
KEEPS = {"output_final_state": True}
CHUNKS = {**KEEPS, "chunk_size": 4}
CHUNK = {"chunk_size": 4}

_simple = Adapter({"q": Q, "k": Q, "v": V, "g": PER_HEAD}, state=STATE, constants=KEEPS)
_gla = Adapter({"q": Q, "k": Q, "v": V, "gk": PER_KEY}, state=STATE, constants=KEEPS)
_linear = Adapter({"q": Q, "k": Q, "v": V}, state=STATE, constants=KEEPS)
_delta = Adapter({"q": q, "k": k, "v": v, "beta": beta}, output=o, state=STATE, constants=KEEPS)
_gated = Adapter({"q": Q, "k": K, "v": V, "beta": BETA, "g": PER_HEAD}, state=STATE, constants=KEEPS)
_kda = replace(_gated, arguments={"q": Q, "k": K, "v": V, "g": PER_KEY, "beta": BETA})
_gdn2 = replace(
    _gated,
    arguments={
        "q": Q,
        "k": K,
        "v": V,
        "g": PER_KEY,
        "b": Argument("B T H K", "gate"),
        "w": Argument("B T H V", "gate"),
    },
)
_comba = replace(_gated, arguments={"q": Q, "k": K, "v": V, "p": K, "beta": BETA, "g": PER_HEAD})
# alpha = -β k and beta = k make it the delta rule; here they are any two that do not grow.
_alpha = Argument("B H T K", "-torch.nn.functional.normalize(x, dim=-1) / 2")
_iplr = Adapter({"q": q, "k": k, "v": v, "alpha": _alpha, "beta": k}, output=o, state=STATE, constants=KEEPS)
_dplr = replace(_iplr, arguments={**_iplr.arguments, "gk": per_key})
_rwkv6 = Adapter(
    {"q": q, "k": q, "v": v, "w": per_key, "u": Argument("H K")}, output=o, state=STATE, constants=KEEPS
)
_product = Adapter(
    {
        "q": Q,
        "k": Argument("B (T N) H K", "unit"),
        "v": Argument("B (T N) H V"),
        "g": PER_HEAD,
        "beta": Argument("B (T N) H", "gate"),
    },
    state=STATE,
    constants={**KEEPS, "scale": 0.5, "num_householder": 2},
    cu_seqlens="cu_seqlens",
)
_momentum = Adapter(
    {
        "q": Q,
        "k": K,
        "v": V,
        "p": K,
        "log_alpha": PER_HEAD,
        "log_mu": PER_HEAD,
        "beta": BETA,
        "eta": BETA,
    },
    state=(
        State("B H K V", at=(1, 0), argument="initial_S"),
        State("B H K V", at=(1, 1), argument="initial_M"),
    ),
    constants=KEEPS,
)
_TWO = (State("B H K V"), State("B H K", at=(2,), argument="initial_A_state"))
_precond_kda = Adapter(
    {"q": Q, "k": K, "v": V, "g": PER_KEY, "g_atk": PER_HEAD, "beta_atk": BETA, "beta": BETA},
    state=_TWO,
    constants=KEEPS,
)
_precond_gated = Adapter(
    {"q": Q, "k": Q, "v": V, "g_atk": PER_HEAD, "g": PER_HEAD, "beta_atk": BETA, "beta": BETA},
    state=_TWO,
    constants=KEEPS,
    cu_seqlens="cu_seqlens",
)
_mesa = {
    "q": Argument("B T H D"),
    "k": Argument("B T H D", "unit"),
    "v": Argument("B T H D"),
    "g": PER_HEAD,
    "lamb": Argument("H D", "x.abs() + 1"),
    "beta": BETA,
}
_mesa_exact = Adapter(
    _mesa,
    output=Output("B T H D"),
    state=(
        State("B H D D2", at=(1,), argument="h_kk_init"),
        State("B H D D2", at=(2,), argument="h_kv_init"),
    ),
    sizes={"D2": 4},
)
_mesa_step = replace(
    _mesa_exact,
    arguments={n: replace(a, shape=a.shape.replace("B T", "B")) for n, a in _mesa.items()},
    output=Output("B H D"),
    state=(
        State("B H D D2", at=(1,), argument="prev_h_kk", needed=True),
        State("B H D D2", at=(2,), argument="prev_h_kv", needed=True),
    ),
)
_hgrn = Adapter(
    {"x": Argument("B T D"), "g": Argument("B T D", "log_decay")},
    output=Output("B T D"),
    state=(State("B D"),),
    constants=KEEPS,
)
_slots = Adapter(
    {"q": Q, "k": Q, "v": V, "s": Argument("B T H M"), "g": Argument("B T H M", "log_decay")},
    state=(
        State("B H K M", at=(1, 0), part=0),
        State("B H M V", at=(1, 1), part=1),
    ),
    constants=KEEPS,
)
_abc = Adapter(
    {"q": q, "k": q, "v": v, "s": Argument("B H T M")},
    output=o,
    state=_slots.state,
    constants=KEEPS,
)
_softmax = Adapter({"q": Q, "k": Q, "v": V})
_forgetting = Adapter({"q": Q, "k": Q, "v": V, "g": PER_HEAD}, output=Output("B T H V", ()))
_ttt = Adapter(
    {
        "q": Argument("B T H D"),
        "k": Argument("B T H D"),
        "v": Argument("B T H D"),
        "w": Argument("H D"),
        "b": Argument("H D"),
        "eta": Argument("B T H E", "x.sigmoid() / 4"),
    },
    output=Output("B T H D"),
    state=(
        State("B H D D2"),
        State("B H E D", at=(2,), argument="initial_state_bias"),
    ),
    constants={**KEEPS, "mini_batch_size": 4},
    sizes={"D2": 4, "E": 1},
    # Within a mini-batch gradients are taken at its beginning: where it begins is part of the mixer.
    multiple=4,
)
_titans = Adapter(
    {
        "q": Argument("B T H D"),
        "k": Argument("B T H D"),
        "v": Argument("B T H D"),
        "w": Argument("H D"),
        "b": Argument("H D"),
        "theta": Argument("B T H E", "x.sigmoid() / 10"),
        "alpha": Argument("B T H E", "x.sigmoid() / 2"),
        "eta": Argument("B T H E", "x.sigmoid() / 2"),
    },
    output=Output("B T H D"),
    state=(State("B H D D2"),),
    constants={**CHUNKS},
    sizes={"D2": 4, "E": 1},
    multiple=4,
)

REFERENCES: dict[str, Adapter] = {
    "simple_gla.naive:naive_recurrent_simple_gla": _simple,
    "simple_gla.naive:naive_chunk_simple_gla": replace(
        _simple, constants=CHUNKS, step="naive_recurrent_simple_gla"
    ),
    "simple_gla.naive:naive_parallel_simple_gla": replace(
        _simple, constants={}, state=(), step="naive_recurrent_simple_gla", step_adapter=_simple
    ),
    "gla.naive:naive_recurrent_gla": _gla,
    "retention.naive:naive_retention": Adapter({"q": q, "k": q, "v": v}, output=Output("B H T V", ())),
    "linear_attn.naive:naive_recurrent_linear_attn": _linear,
    "linear_attn.naive:naive_chunk_linear_attn": Adapter(
        {"q": Q, "k": Q, "v": V},
        output=Output("B T H V", ()),
        multiple=64,
        lengths=(64, 192),
        step="naive_recurrent_linear_attn",
        step_adapter=_linear,
    ),
    "delta_rule.naive:delta_rule_recurrence": _delta,
    "delta_rule.naive:delta_rule_chunkwise": replace(
        _delta,
        constants=CHUNK,
        multiple=4,
        state=(State("B H K V", argument=None),),
        step="delta_rule_recurrence",
        step_adapter=_delta,
    ),
    "delta_rule.naive:delta_rule_parallel": replace(
        _delta,
        constants={"BM": 8, "BN": 4},
        multiple=8,
        state=(),
        step="delta_rule_recurrence",
        step_adapter=_delta,
    ),
    "gated_delta_rule.naive:naive_recurrent_gated_delta_rule": _gated,
    "gated_delta_rule.naive:naive_chunk_gated_delta_rule": replace(
        _gated, constants=CHUNKS, step="naive_recurrent_gated_delta_rule"
    ),
    "kda.naive:naive_recurrent_kda": _kda,
    "kda.naive:naive_chunk_kda": replace(_kda, constants=CHUNKS, multiple=4, step="naive_recurrent_kda"),
    "gdn2.naive:naive_recurrent_gdn2": _gdn2,
    "gdn2.naive:naive_chunk_gdn2": replace(_gdn2, constants=CHUNKS, step="naive_recurrent_gdn2"),
    "comba.naive:naive_recurrent_comba": _comba,
    "comba.naive:naive_chunk_comba": replace(_comba, constants=CHUNKS, step="naive_recurrent_comba"),
    "generalized_delta_rule.iplr.naive:iplr_recurrence": _iplr,
    "generalized_delta_rule.iplr.naive:iplr_chunkwise": replace(
        _iplr, constants=CHUNKS, multiple=4, step="iplr_recurrence"
    ),
    "generalized_delta_rule.dplr.naive:dplr_recurrence": _dplr,
    "generalized_delta_rule.dplr.naive:dplr_chunkwise": replace(
        _dplr, constants=CHUNKS, multiple=4, step="dplr_recurrence"
    ),
    "gated_delta_product.naive:naive_recurrent_gated_delta_product": _product,
    "momentum_delta_rule.naive:recurrent_momentum_delta_rule_ref": _momentum,
    "momentum_delta_rule.naive:chunk_momentum_delta_rule_ref": replace(
        _momentum, constants=CHUNKS, step="recurrent_momentum_delta_rule_ref"
    ),
    "precond_kda.naive:naive_recurrent_precond_kda": _precond_kda,
    "precond_gated_delta_rule.naive:naive_recurrent_precond_gated_delta_rule": _precond_gated,
    "mesa_net.naive:naive_mesa_net_exact": _mesa_exact,
    "mesa_net.naive:naive_mesa_net_CG": replace(
        _mesa_exact,
        constants={"chunk_size": 4},
        multiple=4,
        step="naive_mesa_net_decoding_one_step",
        step_adapter=_mesa_step,
        tolerance=1e-3,  # conjugate gradients, with 1e-5 added to their denominators
    ),
    "rwkv6.recurrent_naive:naive_recurrent_rwkv6": _rwkv6,
    "rwkv6.chunk_naive:naive_chunk_rwkv6": replace(
        _rwkv6,
        output=Output("B H T V", ()),
        constants=CHUNK,
        state=(),
        multiple=4,
        # Its queries are not scaled: whoever calls it scales them.
        step="fla.ops.rwkv6.recurrent_naive:naive_recurrent_rwkv6",
        step_adapter=replace(_rwkv6, constants={**KEEPS, "scale": 1.0}),
    ),
    "hgrn.naive:naive_recurrent_hgrn": _hgrn,
    "hgrn.naive:naive_chunk_hgrn": replace(
        _hgrn,
        constants={**KEEPS, "chunk_size": 64},
        multiple=64,
        lengths=(64,),
        step="naive_recurrent_hgrn",
        longest=64,  # one chunk: its view of g is [B, chunk_size, D]
    ),
    "gsa.naive:naive_recurrent_gsa": _slots,
    "abc.naive:naive_recurrent_abc": _abc,
    "abc.naive:naive_cumsum_abc": replace(_abc, constants={}, state=()),
    "based.naive:naive_parallel_based": Adapter({"q": q, "k": q, "v": v}, output=Output("B H T V", ())),
    "based.naive:naive_chunk_based": Adapter(
        {"q": q, "k": q, "v": v}, output=Output("B H T V", ()), constants=CHUNK, multiple=4
    ),
    "rebased.naive:naive_parallel_rebased": Adapter({"q": q, "k": q, "v": v}, output=Output("B H T V", ())),
    "ttt.naive:chunk_ttt_linear_ref": _ttt,
    "titans.naive:chunk_titans_linear_ref": _titans,
    "log_linear_attn.naive:naive_log_linear_attn": Adapter(
        {
            "q": Q,
            "k": Q,
            "v": V,
            "g": PER_HEAD,
            "level_scales": Argument("B T H L", "x.sigmoid()"),
        },
        output=Output("B T H V", ()),
        sizes={"L": 12},
    ),
    "attn.naive:naive_parallel_attn": _softmax,
    "forgetting_attn.naive:naive_forgetting_attn": _forgetting,
    "stickbreaking_attn.naive:naive_stickbreaking_attn": _softmax,
    "path_attn.naive:naive_path_attn": Adapter(
        {
            "q": Argument("B T H D"),
            "k": Argument("B T H D"),
            "v": Argument("B T H D"),
            "w": Argument("B T H D", "unit"),
            "beta": BETA,
            "g": PER_HEAD,
        },
        output=Output("B T H D", ()),
        constants={**CHUNK, "scale": 0.5},
    ),
}
