"""A proof that cannot fail proves nothing: the core is broken in many small ways, and each is found."""

import torch

from mixerzoo.equivalence.algebra import Element
from mixerzoo.equivalence.prove import prove
from mixerzoo.kernels import delta, forms, gradients, operator, ops, scan, tree
from mixerzoo.kernels.order import Order
from mixerzoo.kernels.steps import Gradients, Steps
from mixerzoo.mixers import base

# What runs the code. Coq checks proofs about a model of it, which no breaking of the code touches.
RUN = ("exact", "bitwise", "bound", "property", "text")


def failures(*names, by=None):
    """What the theorems of these names say is wrong: on all evidence that runs code, or on one kind."""
    return {o.name: o.failure for o in prove(list(names), kinds=[by] if by else RUN) if not o.passed}


def caught(*names, by=None):
    """All of them fail; the reasons in one text."""
    found = failures(*names, by=by)
    assert set(found) == set(names), f"only {sorted(found)} of {sorted(names)} noticed"
    return "\n".join(found.values())


def test_the_first_step_of_a_chunk_does_not_decay_the_state(monkeypatch):
    real = forms.prefix
    monkeypatch.setattr(forms, "prefix", lambda x, inclusive: real(x, False))
    # The smallest counterexample: a chunk of one step.
    assert "n = 1," in caught("forms/chunk-body", "forms/chunk", "operator/forms-float64")


def test_the_mask_is_off_by_one(monkeypatch):
    real = forms.causal
    monkeypatch.setattr(forms, "causal", lambda P, i, order: real(P, i, Order("RDA")))
    assert "T = 1 " in caught("forms/parallel", "forms/chunk", "operator/forms-float64")


def test_the_last_step_of_a_chunk_decays_its_own_write(monkeypatch):
    real = forms.suffix
    monkeypatch.setattr(forms, "suffix", lambda x, inclusive: real(x, True))
    caught("forms/chunk-body", "forms/split")
    caught("forms/split", by="property")


def test_the_state_is_not_decayed_over_values(monkeypatch):
    real = forms.decay_state
    monkeypatch.setattr(forms, "decay_state", lambda S, la, lb: real(S, la, None))
    caught("forms/chunk", "forms/scan", "links/elementwise", "mixers/hgrn/paper")


def test_the_tree_forgets_its_last_level(monkeypatch):
    real = tree.Climb.level

    def level(climb):
        found = real(climb)
        last = 2 * climb.h == climb.reads.shape[-2] > 4
        return found._replace(reads=torch.zeros_like(found.reads)) if last else found

    monkeypatch.setattr(tree.Climb, "level", level)
    caught("forms/chunk-body", "gradients/chunk-body")


def test_a_climb_weighs_by_its_own_half(monkeypatch):
    """And not by the half that lies between."""
    real = tree.left
    monkeypatch.setattr(
        tree, "left", lambda x, h: tree.right(x, h) if x.shape[-2] == 8 and h == 1 else real(x, h)
    )
    caught("forms/chunk-body", "gradients/chunk-body")


def test_what_passes_through_a_block_is_forgotten(monkeypatch):
    """Only the gradient of log-decays sees it."""
    real = tree.down

    def down(name, level, block, given):
        nothing = None if given.la is None else torch.zeros_like(given.la)
        return real(name, level, block, given._replace(la=nothing))

    monkeypatch.setattr(tree, "down", down)
    assert "log_decay" in caught("gradients/chunk")


def test_the_loop_forgets_the_state(monkeypatch):
    def in_blocks(steps, S, order, size, body):
        outs = []
        for i in range(0, len(steps), size):
            o, end = body(steps.slice(i, min(i + size, len(steps))), S, order)
            outs.append(o)
        return outs, end

    monkeypatch.setattr(forms, "in_blocks", in_blocks)
    assert "given the state at 0" in caught("forms/loop", "forms/chunk", "forms/recurrent")


def test_the_loop_drops_the_ragged_tail(monkeypatch):
    real = forms.in_blocks

    class Cut:
        def __init__(self, steps, n):
            self.steps, self.n, self.slice = steps, n, steps.slice

        def __len__(self):
            return self.n

    def in_blocks(steps, S, order, size, body):
        return real(Cut(steps, max(len(steps) // size * size, min(size, len(steps)))), S, order, size, body)

    monkeypatch.setattr(forms, "in_blocks", in_blocks)
    caught("forms/loop", "forms/chunk")


def test_the_scan_composes_in_the_wrong_order(monkeypatch):
    real = scan.compose
    monkeypatch.setattr(scan, "compose", lambda first, then, out=(None, None): real(then, first))
    # Associative it still is.
    assert not failures("forms/scan-associative")
    caught("forms/scan-network", "forms/scan")


def test_the_scan_loses_a_decay(monkeypatch):
    real = scan.compose

    def compose(first, then, out=(None, None)):
        return first[0], real(first, then)[1]

    monkeypatch.setattr(scan, "compose", compose)
    caught("forms/scan-associative", "forms/scan")


def test_a_masked_step_decays(monkeypatch):
    real = ops.apply_mask

    def apply(x):
        return real(x)._replace(log_decay=x.log_decay, log_decay_v=x.log_decay_v)

    monkeypatch.setattr(ops, "apply_mask", apply)
    caught("forms/mask", by="exact")
    caught("forms/mask", by="property")


def test_padding_lets_nan_through(monkeypatch):
    real = ops.apply_mask

    def apply(x):
        if x.mask is None:
            return x
        return real(x)._replace(k=x.k * x.mask[..., None, None], v=x.v * x.mask[..., None, None])

    monkeypatch.setattr(ops, "apply_mask", apply)
    caught("forms/mask", by="property")


def test_packed_sequences_leak(monkeypatch):
    monkeypatch.setattr(ops, "_segments", lambda x: [(0, x.v.shape[1])] if x.v.shape[1] else [])
    caught("operator/packed", "mixers/lightning/packing")


def test_rows_of_a_batch_share_their_state(monkeypatch):
    def shared(form):
        def run(steps, S, order, size):
            pieces, end = form(steps, S, order, size)
            return pieces, end[:1].expand(*end.shape)

        return run

    for name, form in list(forms.FORMS.items()):
        monkeypatch.setitem(forms.FORMS, name, shared(form))
    caught("forms/split", by="exact")
    caught("forms/chunk", "forms/scan", "mixers/gla/batching", "mixers/gla/padding", by="property")


def test_attention_sees_what_comes_later(monkeypatch):
    monkeypatch.setattr(forms, "causal", lambda P, i, order: P)
    caught("mixers/gla/causality", "mixers/mamba2/causality", by="property")
    caught("forms/parallel", "forms/parallel-body", by="exact")


def test_decode_clamps_its_decays(monkeypatch):
    real = operator.step

    def clamped(q, k, v, log_decay=None, log_decay_v=None, **options):
        return real(q, k, v, None if log_decay is None else log_decay.clamp(min=-1), log_decay_v, **options)

    monkeypatch.setattr(base, "step", clamped)
    caught("mixers/mamba2/streaming", by="property")
    caught("mixers/simple-gla/streaming", by="property")


# ------------------------------------------------------------------ gradients


def test_the_gradient_of_the_state_is_dropped(monkeypatch):
    real = gradients._outside
    monkeypatch.setattr(gradients, "_outside", lambda x, S, G, *sides: (real(x, S, G, *sides)[0], G))
    reason = caught("gradients/chunk", "gradients/chunk-body", "operator/gradients")
    assert "initial_state" in reason


def test_the_gradient_of_the_final_state_is_ignored(monkeypatch):
    real = gradients.walk_gradient
    monkeypatch.setitem(
        gradients.GRADIENTS,
        "recurrent",
        lambda c, S, G, do, order: real(c, S, torch.zeros_like(G), do, order),
    )
    caught("gradients/recurrent", "gradients/chunk-body", "operator/gradients", "lattice/operator")


def test_a_pair_is_missing_from_the_decay_gradient(monkeypatch):
    real = gradients.prefix
    monkeypatch.setattr(gradients, "prefix", lambda x, inclusive: real(x, False))
    reason = caught("gradients/chunk", "gradients/chunk-body")
    assert "log_decay" in reason


def test_constants_get_the_gradient_of_one_step(monkeypatch):
    real = Steps.join
    monkeypatch.setattr(Steps, "join", lambda self, pieces: real(self, pieces[:1] * len(pieces)))
    caught("gradients/operands", "gradients/chunk")


def test_the_scale_is_left_out_of_a_gradient(monkeypatch):
    real = Steps.pull_back

    def pull_back(self, i, j, g):
        scale, self.scale = self.scale, 1.0
        try:
            return real(self, i, j, g)
        finally:
            self.scale = scale

    monkeypatch.setattr(Steps, "pull_back", pull_back)
    assert "the gradient of q is wrong" in caught("gradients/chunk", "gradients/recurrent")


# ------------------------------------------------------------------ what exact proofs do not see


def subtracting_segment_sums(x, i, order):
    """Differences of cumulative sums, clamped as kernels that subtract do."""
    if not isinstance(x, Element):
        x = x.clamp(min=-1e4)
    before = torch.cat([torch.zeros_like(x[..., :1, :]), x[..., :-1, :]], -2)
    with_own, without = torch.cumsum(x, -2), torch.cumsum(before, -2)
    t = with_own if order.query_decayed else without
    s = without if order.key_decayed else with_own
    return t[..., i:, None, :] - s[..., None, :, :]


def test_subtracted_sums_are_exact_and_fail_by_rounding(monkeypatch):
    monkeypatch.setattr(forms, "segment_sums", subtracting_segment_sums)
    assert not failures("forms/parallel", "forms/chunk-body", "forms/chunk", by="exact")
    caught("operator/forms-float32", "operator/forms-float64")
    caught("forms/parallel", by="property")


def subtracting_gradient(c, S, G, do, order):
    """The usual formula: dlog a is a difference of two cumulative sums."""
    g, start = gradients.chunk_gradient(c, S, G, do, order)
    o, end = forms.chunk(c, S, order)

    def difference(earlier, later, tail, l):
        later = forms.suffix(later, not order.key_decayed)
        found = forms.suffix(earlier, order.query_decayed) - later + tail[..., None, :]
        return gradients._like(found, l)

    la, lb = c.la, c.lb
    return Gradients(
        g.q,
        g.k,
        g.v,
        None if la is None else difference(c.q * g.q, c.k * g.k, (end * G).sum(-1), la),
        None if lb is None else difference(o * do, c.v * g.v, (end * G).sum(-2), lb),
    ), start


def test_a_subtracting_decay_gradient_is_exact_and_fails_by_rounding(monkeypatch):
    monkeypatch.setitem(gradients.GRADIENTS, "chunk", subtracting_gradient)
    assert not failures("gradients/chunk", by="exact")
    assert "gradient of log_decay" in caught("operator/decay-gradient")


def test_half_precision_accumulation_is_seen(monkeypatch):
    monkeypatch.setattr(ops, "accumulation_dtype", lambda *xs: next(x.dtype for x in xs if x is not None))
    caught("operator/forms-bfloat16")


# ------------------------------------------------------------------ mixers


def test_padding_counts_as_a_position(monkeypatch):
    monkeypatch.setattr(base.Tokens, "advance", lambda self, position: position + self.position.shape[1])
    caught("mixers/hgrn-complex/padding", "mixers/transnormer-llm/padding", "mixers/hgrn-complex/packing")


def test_the_window_is_not_handed_on(monkeypatch):
    from mixerzoo.mixers import Mamba

    real = Mamba.operands
    monkeypatch.setattr(Mamba, "operands", lambda self, x, window, tokens: real(self, x, None, tokens))
    caught("mixers/mamba/streaming", "mixers/mamba/packing")
    caught("mixers/mamba/streaming", by="text")


def test_a_step_that_is_not_the_recurrence(monkeypatch):
    real = operator.step
    monkeypatch.setattr(base, "step", lambda *args, **options: real(*args, **{**options, "read": "before"}))
    caught("mixers/linear-attention/streaming", by="property")
    caught("mixers/hgrn/streaming", by="text")


def test_reasons_name_the_smallest_arguments(monkeypatch):
    """hypothesis shrinks: what is reported is as short as the mistake allows."""
    real = forms.walk

    def walk(c, S, order):
        o, end = real(c, S, order)
        return (o, end) if o.shape[-2] < 3 else (o * 2, end)

    monkeypatch.setattr(forms, "walk", walk)
    assert "T = 3," in caught("operator/forms-float64")


def test_a_step_of_a_chunk_does_not_see_what_the_chunk_wrote(monkeypatch):
    monkeypatch.setattr(delta, "solve", lambda L, b, transposed=False, out=None: b)
    assert "n = 2," in caught("delta/chunk-body")
    caught("delta/chunk", "delta/parallel", "delta/gradient-chunk", "delta/gradient-body")


def test_the_system_is_not_transposed_in_the_gradient(monkeypatch):
    real = delta.solve
    monkeypatch.setattr(delta, "solve", lambda L, b, transposed=False, out=None: real(L, b, out=out))
    caught("delta/gradient-chunk", "delta/gradient-body")
    assert not failures("delta/chunk", "delta/gradient-recurrent")


def test_the_delta_rule_reads_before_its_decay(monkeypatch):
    monkeypatch.setattr(delta, "DECAYED", delta.BEFORE)
    caught("delta/chunk", "delta/parallel", "delta/chunk-body", "delta/gradient-chunk")


def test_the_general_form_reads_after_its_decay(monkeypatch):
    monkeypatch.setattr(delta, "BEFORE", delta.DECAYED)
    caught("delta/chunk", "delta/parallel", "delta/chunk-body", "delta/is-an-erasure", "delta/gradient-chunk")


def test_keys_have_no_gradient_as_what_the_delta_rule_reads_by(monkeypatch):
    monkeypatch.setitem(delta.GRADIENTS, "recurrent", without_read_gradient)
    caught("delta/gradient-recurrent", "delta/gradient-body")


def without_read_gradient(c, S, G, do, order):
    g, start = gradients.walk_gradient(c, S, G, do, order)
    if c.beta is None:
        return g._replace(y=g.y.zeros_like()), start
    return g._replace(k=g.k.zeros_like()), start
