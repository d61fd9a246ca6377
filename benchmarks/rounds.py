"""Sides of a comparison that are measured in turn, and what their rounds say: the median, and the spread."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Rates = dict[str, list[float]]
"""By the name of a side, what each round measured"""


class Spread(NamedTuple):
    """What several rounds measured."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of one value for each round, of which there is at least one."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.low:.4g} to {self.high:.4g})"


def measure_in_turn(sides: Mapping[str, Callable[[], float]], rounds: int, unit: str = "images/s") -> Rates:
    """Measure every side once in each round, and print the rounds.

    Each second round goes backwards, so that a machine that grows slower or faster favors no side.
    """
    rates: Rates = {name: [] for name in sides}
    for number in range(rounds):
        for name in reversed(list(sides)) if number % 2 else sides:
            rates[name].append(sides[name]())
        shown = ", ".join(f"{name} {rate[-1]:.4g}" for name, rate in rates.items())
        print(f"round {number + 1}: {shown} {unit}", flush=True)
    return rates


def ratio(over: Sequence[float], under: Sequence[float]) -> Spread:
    """The ratio of two sides, taken within each round."""
    return Spread.of([a / b for a, b in zip(over, under, strict=True)])


def table(spreads: Mapping[str, Spread], unit: str = "") -> str:
    """A Markdown table with a row for each spread."""
    rows = [f"| {name} | {s.median:.4g} | {s.low:.4g} | {s.high:.4g} |" for name, s in spreads.items()]
    return "\n".join([f"| {unit} | median | lowest round | highest round |", "|---|---|---|---|", *rows])


def json_line(spreads: Mapping[str, Spread], **others: Any) -> str:
    """One JSON object: the median of each spread by its name, its lowest and highest round as `NAME_range`."""
    values: dict[str, Any] = {}
    for name, spread in spreads.items():
        values[name] = _rounded(spread.median)
        values[f"{name}_range"] = [_rounded(spread.low), _rounded(spread.high)]
    return json.dumps(values | others)


def _rounded(value: float) -> float:
    """`value` with four digits, or all before the point."""
    return float(f"{value:.4g}") if abs(value) < 1000 else float(round(value))
