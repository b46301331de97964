"""The order of events within one step of the recurrence."""

from __future__ import annotations

from typing import NamedTuple


class Order(NamedTuple):
    """What happens within a step, in order: D decays the state, A adds k vᵀ, R reads o = Sᵀ q.

    Everything else about a form follows from the three letters. The weight of the pair
    (s, t), what the value written at s counts for in the output read at t, is the product
    of the decays of all steps between, with t's own if D precedes R (`query_decayed`) and
    s's own if A precedes D (`key_decayed`); the pair (t, t) counts unless R precedes A (`strict`).
    """

    events: str

    @property
    def query_decayed(self) -> bool:
        return self.events.index("D") < self.events.index("R")

    @property
    def key_decayed(self) -> bool:
        return self.events.index("A") < self.events.index("D")

    @property
    def strict(self) -> bool:
        return self.events.index("R") < self.events.index("A")

    @property
    def adjoint(self) -> Order:
        """The order of the gradient's recurrence, which runs backwards and swaps reads with writes."""
        return Order(self.events[::-1].translate(str.maketrans("AR", "RA")))


AFTER = Order("DAR")  # o_t = S_tᵀ q_t
BEFORE = Order("RDA")  # o_t = S_{t-1}ᵀ q_t; its own adjoint
READS = {"after": AFTER, "before": BEFORE}
ALL_ORDERS = tuple(Order(e) for e in ("DAR", "ARD", "RDA", "DRA", "RAD", "ADR"))
