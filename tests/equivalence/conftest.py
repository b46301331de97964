"""A tiny text, and figures and a report small enough for a test."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mixerzoo.equivalence.figures.plan import Inputs, Plan
from mixerzoo.equivalence.training import Corpus, Settings, train_all


@pytest.fixture(scope="session")
def text() -> bytes:
    first = b"The state of a recurrence is all that it knows. It forgets by decay alone.\n\n"
    return first + b"".join(
        b"Paragraph %d, and then %d more words follow it.\n\n" % (i, i) for i in range(80)
    )


@pytest.fixture(scope="session")
def tiny() -> Settings:
    return Settings(steps=3, d_model=16, layers=1, length=24, batch=2, evaluations=3)


@pytest.fixture(scope="session")
def inputs(text: bytes, tiny: Settings) -> Inputs:
    """A few mixers trained for three steps, all for one, and short lengths for what is measured."""
    plan = Plan(
        tiny,
        sketch=replace(tiny, steps=1, evaluations=1),
        error_lengths=(16, 32),
        time_lengths=(16, 32),
        time_seconds=5.0,
        form_lengths=(8, 16),
    )
    corpus = Corpus(text, tiny.length)
    trainings = train_all(plan.mixers, corpus, tiny)
    return Inputs(plan, corpus, trainings, train_all(plan.sketched, corpus, plan.sketch))
