"""States between chunks: what each leaves of the one before it and adds to it, and the gradients of that.

Here all leading axes are one: states [batches, K, V], and of chunks rows and columns [chunks, batches, C, K].
"""

from __future__ import annotations

import torch

from .forms import at
from .memory import copied, scaled, with_product
from .scores import Column, Scores
from .steps import Array


def flat(x: Array, lead: tuple[int, ...]) -> Array:
    """[chunks, ..., C, D] as [chunks, batches, C, D], by these leading axes."""
    return x.expand(x.shape[0], *lead, *x.shape[-2:]).reshape(x.shape[0], -1, *x.shape[-2:])


class Passing:
    """Of chunks, by what their columns write, whose values are given one by one."""

    def __init__(self, scores: Scores, columns: list[Column], lead: tuple[int, ...]) -> None:
        whole = scores.whole()
        self.whole: Array = None if whole is None else flat(whole, lead)
        self.fading = scores.fading
        self.keys = [list(flat(scores.to_end(x), lead)) for x in columns]

    def after(self, i: int, S: Array, values: list[Array], out: Array) -> Array:
        """The state after chunk i, from that before it."""
        whole = at(self.whole, i)
        if not self.fading:
            S, whole = torch.mul(S, whole, out=out), None
        for k, v in zip(self.keys, values, strict=True):
            S = with_product(S, k[i].mT, v, out)
        return scaled(S, whole)

    def written(self, i: int, G: Array, out: Array) -> Array:
        """The gradient of what chunk i writes to the state after it, from that of this state."""
        if self.fading and self.whole is not None:
            return torch.mul(G, self.whole[i], out=out)
        return copied(G, out)

    def passed(self, i: int, G: Array, out: Array) -> Array:
        """The gradient of the state before chunk i, but for what is read of it, from `written`."""
        return G if self.fading else torch.mul(G, self.whole[i], out=out)
