"""Training of the language model: the same data, order and budget for every mixer."""

from __future__ import annotations

import contextlib
import copy
import math
import multiprocessing
import os
import pickle
import queue
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..mixers import HybridLM
from .language_model import Agreement, Generation, agreement, generation, language_model
from .timing import one_thread

PROMPT, SAMPLE = b"The ", 240  # what a trained model is asked to continue, and for how many bytes


@dataclass(frozen=True)
class Settings:
    steps: int = 400
    d_model: int = 64
    layers: int = 2
    length: int = 128
    batch: int = 16
    learning_rate: float = 4e-3
    weight_decay: float = 0.1
    evaluations: int = 12
    seed: int = 0


class Corpus:
    """Bytes split into training and validation text, as token tensors.

    Documentation repeats itself, and a paragraph of the validation text that was also trained on
    would flatter the model: repeated paragraphs are dropped first, then the last tenth is held out.
    """

    def __init__(self, text: bytes, length: int) -> None:
        unique = b"\n\n".join(dict.fromkeys(text.split(b"\n\n")))
        cut = len(unique) * 9 // 10
        if len(unique) - cut <= length:
            raise ValueError(
                f"the text has {len(unique)} bytes without repeated paragraphs; "
                f"accepted: more than {10 * (length + 1)}, for sequences of {length}"
            )
        self.text = text
        tokens = torch.frombuffer(bytearray(unique), dtype=torch.uint8).long()
        self.train, self.validation, self.length = tokens[:cut], tokens[cut:], length

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(self.train) - self.length, (size,), generator=generator)
        windows = self.train[starts[:, None] + torch.arange(self.length + 1)]
        return windows[:, :-1], windows[:, 1:]

    def held_out(self, size: int) -> tuple[Tensor, Tensor]:
        """Evenly spread windows of the validation text: the same for every model."""
        last = len(self.validation) - self.length - 1
        starts = torch.linspace(0, last, min(size, last + 1)).long()
        windows = self.validation[starts[:, None] + torch.arange(self.length + 1)]
        return windows[:, :-1], windows[:, 1:]

    def sentence(self, n: int) -> bytes:
        """A plain sentence of at most n bytes from the validation text, or a clause, or its first n bytes."""
        text = bytes(self.validation.tolist())
        clauses = re.findall(rb"(?<=[ \n])[A-Z][a-z]+(?: [a-z]+)+[.,:]", text)
        fitting = [c for c in clauses if n // 2 <= len(c) <= n]
        return max(fitting, key=lambda c: (c.endswith(b"."), len(c)), default=text[:n])


@dataclass(frozen=True)
class Training:
    """A trained model and what was measured on the way."""

    mixer: str
    settings: Settings
    model: HybridLM
    steps: list[int]  # when the two below were measured
    train_bits: list[float]  # bits per byte, mean since the measurement before; NaN at step 0
    validation_bits: list[float]
    seconds: float  # of training, evaluation apart
    float32: Agreement  # prefill = chunked prefill = decode, of the trained model
    float64: Agreement
    sample: Generation

    @property
    def agrees(self) -> bool:
        """Prefill, chunked prefill and decode give the same logits, to rounding in both dtypes."""
        return self.float32.relative <= 1e-4 and self.float64.relative <= 1e-10

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


def bits(model: HybridLM, inputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy in bits per byte."""
    logits, _ = model(inputs)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()) / math.log(2)


def rate(step: int, settings: Settings) -> float:
    """Linear warm-up over the first tenth, then a cosine down to a tenth of the peak."""
    warmup = max(settings.steps // 10, 1)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(settings.steps - warmup, 1)
    return settings.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def train(
    mixer: str,
    corpus: Corpus,
    settings: Settings,
    advance: Callable[[], object] = lambda: None,
) -> Training:
    """Train from a fixed seed, leaving the caller's random state alone. `advance` is called every step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = language_model(mixer, settings.d_model, settings.layers)
    batches = torch.Generator().manual_seed(settings.seed)
    # Weights of linear maps decay; biases, norms and what governs a mixer's memory (Mamba's A) do not.
    named = dict(model.named_parameters())
    matrices = [p for name, p in named.items() if name.endswith(".weight") and p.ndim >= 2]
    others = [p for name, p in named.items() if not (name.endswith(".weight") and p.ndim >= 2)]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
    )
    validation = corpus.held_out(32)
    measured: list[int] = []
    train_bits: list[float] = []
    validation_bits: list[float] = []
    seconds = 0.0
    every = max(settings.steps // settings.evaluations, 1)
    recent: list[float] = []

    def evaluate(step: int) -> None:
        with torch.no_grad():
            validation_bits.append(float(bits(model, *validation)))
        measured.append(step)
        train_bits.append(sum(recent) / len(recent) if recent else math.nan)
        recent.clear()

    evaluate(0)
    for step in range(settings.steps):
        start = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = rate(step, settings)
        loss = bits(model, *corpus.batch(settings.batch, batches))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(float(loss.detach()))
        seconds += time.perf_counter() - start
        if (step + 1) % every == 0 or step + 1 == settings.steps:
            evaluate(step + 1)
        advance()

    model.eval()
    tokens = validation[0][:2]
    return Training(
        mixer,
        settings,
        model,
        measured,
        train_bits,
        validation_bits,
        seconds,
        agreement(model, tokens),
        agreement(copy.deepcopy(model).double(), tokens),
        generation(model, PROMPT, SAMPLE, temperature=0.6, seed=settings.seed),
    )


def train_all(
    mixers: Sequence[str],
    corpus: Corpus,
    settings: Settings,
    advance: Callable[[str], object] = lambda name: None,
    workers: int = 1,
) -> dict[str, Training]:
    """A model of every mixer; `advance(name)` is called for each of its steps.

    Each trains on one thread, `workers` at a time in processes of their own: models this small leave
    further threads waiting for each other, and results do not depend on the number of cores. With
    several workers the calling script needs the usual `if __name__ == "__main__"` of multiprocessing.
    """
    workers = min(workers, len(mixers))
    if workers <= 1:
        with one_thread():
            return {m: train(m, corpus, settings, advance=partial(advance, m)) for m in mixers}
    context = multiprocessing.get_context("spawn")  # forking a process that has run torch can hang
    steps: Any = context.Queue()
    with ProcessPoolExecutor(workers, context, _start_worker, (steps,)) as pool:
        # The largest first, so that none is left to run alone at the end.
        order = sorted(mixers, key=lambda m: -_size(m, settings))
        pending = {m: pool.submit(_train_in_worker, m, corpus.text, settings) for m in order}
        while not all(future.done() for future in pending.values()):
            with contextlib.suppress(queue.Empty):
                advance(steps.get(timeout=0.2))
        while not steps.empty():
            advance(steps.get())
        return {m: pickle.loads(pending[m].result()) for m in mixers}


_steps: Any = None  # in a worker, where it reports its steps


def _start_worker(steps: Any) -> None:
    global _steps
    _steps = steps
    torch.set_num_threads(1)


def _train_in_worker(mixer: str, text: bytes, settings: Settings) -> bytes:
    """Pickled here: multiprocessing would pass tensors through shared memory, scarce in containers."""
    result = train(mixer, Corpus(text, settings.length), settings, advance=partial(_steps.put, mixer))
    return pickle.dumps(result)


def _size(mixer: str, settings: Settings) -> int:
    """Parameters of a model, counted without making it."""
    with torch.device("meta"):
        return sum(p.numel() for p in language_model(mixer, settings.d_model, settings.layers).parameters())


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
