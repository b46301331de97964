"""The core: one recurrence, parameterised by its decay. Knows tensors, nothing of models.

    S_t = (a_t b_tᵀ) ∘ S_{t-1} + k_t v_tᵀ        o_t = S_tᵀ q_t

`recurrence` computes it over a sequence, in any of four forms that are the same function;
`step` computes one token of it.
"""

from .checks import check_values
from .operator import OuterDecay, recurrence, step

__all__ = ["OuterDecay", "check_values", "recurrence", "step"]
