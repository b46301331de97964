"""Float64 that is meant, for code that need not be a model of transformers."""

from __future__ import annotations

from typing import Any

import torch

from .transformers.exact import ExactFloat64


class Float64(ExactFloat64):
    """Within it, code that says float32, or says nothing, gets float64."""

    def __enter__(self) -> Any:
        self.default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        torch.set_default_dtype(self.default)
