"""Ten lines of torch and transformers that show a difference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...subject import Case
from .profiles import SIZES, TOKENS

if TYPE_CHECKING:
    from .mixer import MixerSubject
    from .model import ModelSubject


def _options(config: Any, profile: Any) -> str:
    """The options of a configuration that a profile or its variant sets."""
    names = [*SIZES, *TOKENS, *profile.options, *(n for v in profile.variants.values() for n in v)]
    shown = {n: getattr(config, n) for n in dict.fromkeys(names) if hasattr(config, n)}
    return ", ".join(f"{n}={v!r}" for n, v in shown.items())


def _model(subject: ModelSubject | MixerSubject) -> list[str]:
    profile, options = subject.profile, _options(subject.model.config, subject.profile)
    if profile.model == "AutoModelForCausalLM":
        made = 'transformers.AutoModelForCausalLM.from_config(config, experts_implementation="eager")'
    else:
        made = f"transformers.AutoModel.from_config(config, experts_implementation='eager')"
    return [
        "import torch, transformers",
        "torch.manual_seed(1), torch.set_default_dtype(torch.float64)",
        f"config = transformers.{profile.config}({options})",
        f"model = {made}.double().eval().requires_grad_(False)",
        "for p in model.parameters(): p += torch.randn_like(p) * (0.3 if p.ndim == 1 else p.shape[-1] ** -0.5)",
    ]


def of_model(subject: ModelSubject, case: Case) -> str:
    """Lines for properties of whole models."""
    ids = subject.inputs(case.rows, case.length, case.seed)["input_ids"]
    positions = "position_ids" in subject.parameters
    named = "state" if "state" in subject.parameters else "cache"
    out = "logits" if subject.profile.model == "AutoModelForCausalLM" else "last_hidden_state"
    lines = [*_model(subject), f"ids = torch.tensor({ids.tolist()})"]
    start = "transformers.DynamicCache(config=config)" if subject.name == "recurrent_gemma" else "None"
    if case.property == "packed":
        offsets = [0]
        for n in case.sequences:
            offsets.append(offsets[-1] + n)
        place = f", position_ids=torch.tensor([{[t for n in case.sequences for t in range(n)]}])" if positions else ""
        lines += [
            f"ends = torch.tensor({offsets}, dtype=torch.int32)",
            f"found = model(ids, use_cache=False, cu_seq_lens_q=ends, cu_seq_lens_k=ends, max_length_q={max(case.sequences)}, max_length_k={max(case.sequences)}{place}).{out}",
            f"expected = torch.cat([model(piece, use_cache=False).{out} for piece in ids.split({list(case.sequences)}, 1)], 1)",
            _difference("found", "expected"),
        ]
        return "\n".join(lines)
    if case.property == "interleaved":
        other = subject.inputs(1, case.length, case.seed + 1)["input_ids"]
        n = case.pieces[0]
        one = f"model(ids[:, {n}:], {named}=a.{named}, use_cache=True{_positions(positions, n, case.length)})"
        lines += [
            f"other = torch.tensor({other.tolist()})",
            f"a = model(ids[:, :{n}], {named}={start}, use_cache=True); b = model(other[:, :{n}], {named}={start}, use_cache=True)",
            f"found = {one}.{out}",
            _difference("found", f"model(ids, use_cache=False).{out}[:, {n}:]"),
        ]
        return "\n".join(lines)
    masked = case.padding[1] > case.padding[0]
    pieces = case.pieces or (case.length,)
    if masked:
        row = [int(not case.padding[0] <= t < case.padding[1]) for t in range(case.length)]
        lines.append(f"mask = torch.tensor([{row}, {[1] * case.length}])")
    else:
        lines.append("mask = torch.ones_like(ids)")
    call = f"ids[:, a:b], {named}=cache, use_cache=True"
    if positions:
        call += ", position_ids=(mask[:, :b].cumsum(1) - 1).clamp(min=0)[:, a:]"
    if masked:
        call += ", attention_mask=mask[:, :b]" + ("" if positions else " if b - a > 1 else None")
    ends = [0]
    for n in pieces:
        ends.append(ends[-1] + n)
    lines += [
        f"found, cache = [], {start}",
        f"for a, b in {list(zip(ends[:-1], ends[1:], strict=True))}: o = model({call}); found.append(o.{out}); cache = o.{named}",
    ]
    alone = "ids[:1, mask[0] == 1]" if masked else "ids[:1]"
    expected = f"model({alone}, use_cache=False).{out}"
    last = pieces[-1]
    if masked:
        lines.append(_difference("torch.cat(found, 1)[:1, mask[0] == 1]", expected))
    elif case.rows > 1:
        lines.append(_difference("found[-1][:1]", f"{expected}[:, -{last}:]"))
    else:
        lines.append(_difference("torch.cat(found, 1)", expected))
    return "\n".join(lines)


def _positions(counted: bool, start: int, stop: int) -> str:
    return f", position_ids=torch.arange({start}, {stop})[None]" if counted else ""


def _difference(found: str, expected: str) -> str:
    return f"x, y = {found}, {expected}; print(float((x - y).abs().max() / y.abs().max()))"


def of_mixer(subject: MixerSubject, case: Case) -> str:
    """Lines for properties of numbers: of the mixer by itself."""
    return ""
