"""Every class of transformers that is known here."""

from __future__ import annotations

from . import delta, mamba, mamba2, minimax, recurrent_gemma, rwkv, xlstm
from .recipe import Recipe

# What a model is given besides, in the places of these.
ALSO = rwkv.ALSO
RECIPES: dict[tuple[str, str], Recipe] = {
    (recipe.model_type, recipe.name): recipe
    for family in (minimax, mamba, mamba2, recurrent_gemma, xlstm, rwkv, delta)
    for recipe in family.RECIPES
}
