"""Models, their needs and their measurements, as tables for people."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from gpm_tune.models import model_classes
from gpm_tune.plugins import name_of
from gpm_tune.study.definition.schema import is_inference_only
from gpm_tune.study.views.results import right
from gpm_tune.training.description import Description
from gpm_tune.training.objectives import metric_label, shown
from gpm_tune.training.sweep import Measurement

MARK = "*"


def taxonomy() -> list[dict[str, Any]]:
    """Table 1: where each model's particles get their direction from, and whether a generator follows it.

    With what can be tuned, and which of that is inference-only.
    """
    found = []
    for config in model_classes():
        schema = config.model_json_schema()
        for row in config.taxonomy:
            at_inference = [knob for knob in row.knobs if is_inference_only(schema, knob)]
            found.append({"model": name_of(config), **row._asdict(), "inference_only": at_inference})
    return found


def taxonomy_table() -> Table:
    """The taxonomy for people."""
    note = f"{MARK} inference-only: training does not depend on it"
    table = Table("model", "flow", "generator", "can be tuned", "paper", box=SIMPLE_HEAD, caption=note)
    for row in taxonomy():
        generator = "yes" if row["generator"] else "no"
        knobs = [f"{knob}{MARK if knob in row['inference_only'] else ''}" for knob in row["knobs"]]
        table.add_row(row["model"], row["flow"], generator, ", ".join(knobs), row["paper"])
    return table


def description_table(description: Description) -> list[object]:
    """The networks, then what training and sampling cost, and the keys that only the latter depends on."""
    networks = Table("network", right("parameters"), box=SIMPLE_HEAD)
    for name, count in description.networks.items():
        networks.add_row(name, f"{count:,}")
    costs = Table.grid(padding=(0, 2))
    costs.add_row("training step", f"{_scaled(description.flops_per_step)}FLOP")
    costs.add_row(f"sample, NFE {description.nfe}", f"{_scaled(description.flops_per_sample)}FLOP")
    costs.add_row("weights, gradients, Adam", f"{_scaled(description.memory_of_weights)}B")
    costs.add_row("kept by a training step", f"{_scaled(description.memory_of_step)}B")
    costs.add_row("inference-only keys", ", ".join(description.inference_only))
    return [networks, costs]


def measurements_table(measurements: list[Measurement]) -> Table:
    """A row per solver and NFE, with everything that the numbers depend on in the title."""
    first = measurements[0]
    title = f"{first.samples} samples, {first.split} set, seed {first.seed}"
    labels = [metric_label(name, first.features) for name in first.metrics]
    columns = map(right, ("sampling steps", "NFE", *labels))
    table = Table("solver", *columns, title=title, box=SIMPLE_HEAD)
    for row in measurements:
        steps = "-" if row.sampling_steps is None else str(row.sampling_steps)
        errors = {name: f" ± {shown(error, 1)}" for name, error in row.errors.items()}
        metrics = [f"{shown(value)}{errors.get(name, '')}" for name, value in row.metrics.items()]
        table.add_row(row.solver, steps, str(row.nfe), *metrics)
    return table


def _scaled(value: float) -> str:
    """A number with a decimal prefix."""
    for prefix in ("", "k", "M", "G", "T"):
        if value < 1000:
            return f"{value:.3g} {prefix}"
        value /= 1000
    return f"{value:.3g} P"
