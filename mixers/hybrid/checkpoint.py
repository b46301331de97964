"""A model in a folder: its config as JSON, its tensors in safetensors."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .config import HybridConfig

if TYPE_CHECKING:
    from .model import HybridLM

CONFIG, TENSORS = "config.json", "model.safetensors"


def save(model: HybridLM, folder: str | os.PathLike[str]) -> None:
    config = model.config.to_dict()
    for kind in ("linear_options", "softmax_options"):
        for name, value in config[kind].items():
            try:
                json.dumps(value)
            except TypeError:
                raise TypeError(
                    f"{kind}[{name!r}] is {type(value).__name__}; accepted: what JSON has a form for"
                ) from None
    Path(folder).mkdir(parents=True, exist_ok=True)
    # contiguous(): safetensors takes no views, and a loaded or sharded parameter may be one.
    tensors = {name: x.contiguous() for name, x in model.state_dict().items()}
    save_file(tensors, Path(folder, TENSORS), metadata={"format": "pt"})
    Path(folder, CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load(cls: type[HybridLM], folder: str | os.PathLike[str], device: torch.device | str) -> HybridLM:
    config = HybridConfig.from_dict(json.loads(Path(folder, CONFIG).read_text(encoding="utf-8")))
    return with_tensors(cls, config, load_file(Path(folder, TENSORS), device=str(device)), TENSORS)


def with_tensors(
    cls: type[HybridLM], config: HybridConfig, tensors: Mapping[str, Tensor], source: str
) -> HybridLM:
    """The model of this config whose parameters are these tensors, not copies of them."""
    # Initial weights are drawn, and thrown away: on the CPU, whose random state alone is kept.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        model = cls(config)
    own = model.state_dict()
    for name in own:
        if name not in tensors:
            raise ValueError(f"{source} lacks {name}; accepted: all {len(own)} tensors of the model")
    for name, x in tensors.items():
        if name not in own:
            raise ValueError(f"{source} has {name}; accepted: the tensors of the model alone")
        if x.shape != own[name].shape:
            raise ValueError(
                f"{source} has {name} of shape {list(x.shape)}; accepted: {list(own[name].shape)}"
            )
    model.load_state_dict(tensors, assign=True)
    return model.to(next(iter(tensors.values())).device)  # buffers that no file holds
