"""The figures, by name. Each module measures (plain data, ready for JSON) and draws (from that data alone).

A figure module has NAME, MODELS (the field of `Inputs` with the models it looks at: "trainings" of a
selection, "sketches" of every mixer, or ""), `units(plan)` (how much work it is, for a progress bar) and
`make(inputs, advance)`.
"""

from types import ModuleType

from . import (
    attention_maps,
    error_by_length,
    form_costs,
    gallery,
    learning_curves,
    memory_horizon,
    time_by_length,
)

FIGURES: dict[str, ModuleType] = {
    m.NAME: m
    for m in (
        attention_maps,
        gallery,
        learning_curves,
        memory_horizon,
        error_by_length,
        time_by_length,
        form_costs,
    )
}
