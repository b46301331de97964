"""Ten lines of torch and transformers that show a difference."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...subject import Case
from .profiles import SIZES, TOKENS

if TYPE_CHECKING:
    from .mixer import MixerSubject
    from .model import ModelSubject

SPREAD = "0.3 if p.ndim == 1 else p.shape[-1] ** -0.5"


def of_model(subject: ModelSubject, case: Case) -> str:
    """For a property of whole models."""
    write = {"packed": _packed, "interleaved": _interleaved}.get(case.property, _pieces)
    ids = subject.inputs(case.rows, case.length, case.seed)["input_ids"]
    given, *lines = write(subject, case)
    if not given.startswith("def "):
        return "\n".join([*_model(subject), f"ids = torch.tensor({ids.tolist()}); {given}", *lines])
    return "\n".join([*_model(subject), f"ids = torch.tensor({ids.tolist()})", given, *lines])


def of_mixer(subject: MixerSubject, case: Case) -> str:
    """For a property of a mixer by itself."""
    width = subject.model.config.hidden_size
    seeded = f"generator=torch.Generator().manual_seed({case.seed})"
    sizes = f"{case.rows}, {case.length}, {width}"
    lines = [
        *_model(subject),
        f'mixer = model.get_submodule("{subject.path}"); x = torch.randn({sizes}, {seeded})',
    ]
    call = subject.profile.call.written
    if case.property == "fp64":
        lines += [
            f"found, wide = {call}, lambda v: torch.float64 if v is torch.float32 else v",
            "class NoCasts(torch.overrides.TorchFunctionMode):",
            "    def __torch_function__(self, f, types, a=(), k=None):",
            "        return (torch.Tensor.double if f is torch.Tensor.float else f)"
            "(*map(wide, a), **{n: wide(v) for n, v in (k or {}).items()})",
            f"with NoCasts(): {_difference('found', call)}",
        ]
    elif case.property == "low_precision":
        lines += [
            "mixer.bfloat16(); x = x.bfloat16()",
            f"found = {call}.double()",
            "mixer.double(); x = x.double()",
            _difference("found", call),
        ]
    elif case.property == "gradients":
        lines += [
            "for name, p in [('x', x), *mixer.named_parameters()]:",
            "    p.requires_grad_(); d = 1e-5 * torch.randn_like(p)",
            f"    slope = torch.autograd.grad(({call} ** 2).sum(), p)[0]; p.requires_grad_(False)",
            f"    p += d; up = ({call} ** 2).sum(); p -= 2 * d; down = ({call} ** 2).sum(); p += d",
            "    print(name, float((slope * d).sum()), float(up - down) / 2)",
        ]
    else:
        return ""  # its setting is not a few lines
    return "\n".join(lines)


def _model(subject: ModelSubject | MixerSubject) -> list[str]:
    """The model, with the weights that the audit gives it."""
    profile, config = subject.profile, subject.model.config
    options = {n: getattr(config, n) for n in SIZES | TOKENS | dict(profile.options) | dict(subject.changes)}
    written = ", ".join(f"{n}={v!r}" for n, v in options.items())
    kind, experts = type(config), ""
    imports = "import torch, transformers"
    if profile.model == "AutoModelForCausalLM":
        made = 'transformers.AutoModelForCausalLM.from_config(config, experts_implementation="eager")'
    else:
        model = type(subject.model)
        imports += f"; from {model.__module__} import {model.__name__}"
        experts = "; config._experts_implementation = 'eager'"
        made = f"{model.__name__}(config)"
    named = f"transformers.{kind.__name__}"
    if kind.__module__.partition(".")[0] != "transformers":
        imports += f"; from {kind.__module__} import {kind.__name__}"
        named = kind.__name__
    return [
        f"{imports}; torch.manual_seed(1); torch.set_default_dtype(torch.float64)",
        f"config = {named}({written}){experts}",
        f"model = {made}.double().eval().requires_grad_(False)",
        f"for p in model.parameters(): p += torch.randn_like(p) * ({SPREAD})",
    ]


def _names(subject: ModelSubject) -> tuple[str, str, str]:
    """What the state is called, how it begins, and where the outputs are."""
    named = str(subject.cache_name)
    start = "transformers.DynamicCache(config=config)" if subject.name == "recurrent_gemma" else "None"
    return named, start, "logits" if subject.has_logits else "last_hidden_state"


def _packed(subject: ModelSubject, case: Case) -> list[str]:
    *_, out = _names(subject)
    ends = [0, *itertools.accumulate(case.sequences)]
    longest = max(case.sequences)
    options = f"cu_seq_lens_q=ends, cu_seq_lens_k=ends, max_length_q={longest}, max_length_k={longest}"
    if "position_ids" in subject.parameters:
        options += f", position_ids=torch.tensor([{[t for n in case.sequences for t in range(n)]}])"
    apart = f"model(piece, use_cache=False).{out} for piece in ids.split({list(case.sequences)}, 1)"
    return [
        f"ends = torch.tensor({ends}, dtype=torch.int32)",
        f"found = model(ids, use_cache=False, {options}).{out}",
        _difference("found", f"torch.cat([{apart}], 1)"),
    ]


def _interleaved(subject: ModelSubject, case: Case) -> list[str]:
    named, start, out = _names(subject)
    other = subject.inputs(1, case.length, case.seed + 1)["input_ids"]
    n = case.pieces[0] if case.pieces else case.length - 1
    place = f", position_ids=torch.arange({n}, {n + 1})[None]" if "position_ids" in subject.parameters else ""
    after = "cache" if start != "None" else f"first.{named}"
    return [
        f"other, cache = torch.tensor({other.tolist()}), {start}",
        f"first = model(ids[:, :{n}], {named}=cache, use_cache=True)",
        f"model(other[:, :{n}], {named}={start}, use_cache=True)",
        f"found = model(ids[:, {n}:{n + 1}], {named}={after}, use_cache=True{place}).{out}",
        _difference("found", f"model(ids[:, :{n + 1}], use_cache=False).{out}[:, {n}:]"),
    ]


def _pieces(subject: ModelSubject, case: Case) -> list[str]:
    """In pieces, a row of a batch, or a padded row: against the same alone."""
    named, start, out = _names(subject)
    pieces = case.pieces or (case.length,)
    first, stop = case.padding
    masked = stop > first
    call = f"row[:, a:b], {named}=cache, use_cache=True"
    if "position_ids" in subject.parameters:
        call += ", position_ids=(m[:, :b].cumsum(1) - 1).clamp(min=0)[:, a:]"
    if masked:
        single = "" if "position_ids" in subject.parameters else " if b - a > 1 else None"
        call += f", attention_mask=m[:, :b]{single}"
    kept = "" if start != "None" else f"cache = o.{named}; "
    lines = [
        "def run(row, m, pieces):",
        f"    found, cache = [], {start}",
        f"    for a, b in pieces: o = model({call}); {kept}found.append(o.{out})",
        "    return found",
    ]
    spans = _spans(pieces)
    if masked:
        mask = [[int(not first <= t < stop) for t in range(case.length)], [1] * case.length]
        alone = [pieces[0] - (stop - first), *pieces[1:]]
        apart = f"torch.cat(run(ids[:1, keep], mask[:1, keep], {_spans(alone)}), 1)"
        return [
            f"mask = torch.tensor({mask}); keep = mask[0] == 1",
            *lines,
            _difference(f"torch.cat(run(ids, mask, {spans}), 1)[:1, keep]", apart),
        ]
    whole = f"model(ids, use_cache=False).{out}"
    if case.rows > 1:
        one = "torch.ones_like(ids)"
        return [
            *lines,
            _difference(f"run(ids, {one}, {spans})[-1][:1]", f"run(ids[:1], {one}[:1], {spans})[-1]"),
        ]
    return [*lines, _difference(f"torch.cat(run(ids, torch.ones_like(ids), {spans}), 1)", whole)]


def _spans(pieces: Sequence[int]) -> list[tuple[int, int]]:
    return list(itertools.pairwise([0, *itertools.accumulate(pieces)]))


def _difference(found: str, expected: str) -> str:
    return f"x, y = {found}, {expected}; print(float((x - y).abs().max() / y.abs().max()))"
