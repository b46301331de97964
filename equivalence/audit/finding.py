"""What an audit says: one finding for each property of each target."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

AGREE, DISAGREE, UNSUPPORTED = "agree", "disagree", "unsupported"

# The property, and what a target that has it does.
PROPERTIES = {
    "decode": "token by token, the outputs are those of the whole sequence",
    "chunked_prefill": "in pieces, the outputs are those of the whole sequence",
    "padding_left": "a row padded on the left is the row alone: outputs, and what follows from its state",
    "padding_right": "a row padded on the right is the row alone: outputs, and what follows from its state",
    "padding_inside": "a row with masked tokens between others is the row without them",
    "packed": "sequences packed into one row are the sequences apart",
    "batch": "a row of a batch is the row alone, in prefill and token by token",
    "interleaved": "two sequences computed by turns are the two computed one after the other",
    "fp64": "in float64, results have float64's precision",
    "low_precision": "in bfloat16, errors are a few times what rounding inputs and weights costs",
    "gradients": "gradients of inputs and weights are the slopes that finite differences find",
    "state_gradients": "gradients pass through the state, into it and out of it",
    "decay_extremes": "with decays at both ends, results and gradients are finite, and the results right",
}


@dataclass(frozen=True)
class Finding:
    """The verdict on one property of one target.

    `difference` is the largest relative difference seen, None where none was measured (unsupported, or the
    target raised). `example` is the smallest failing case; for an unsupported property the reason.
    `snippet` reproduces a disagreement.
    """

    target: str
    property: str
    verdict: str
    difference: float | None
    example: str
    snippet: str = ""

    def as_dict(self) -> dict[str, object]:
        """The five fields that `--json` writes."""
        return {
            "target": self.target,
            "property": self.property,
            "verdict": self.verdict,
            "difference": self.difference,
            "example": self.example,
        }


def as_json(findings: Iterable[Finding]) -> str:
    return json.dumps([f.as_dict() for f in findings], indent=1, ensure_ascii=False, allow_nan=False) + "\n"
