"""Tests of measuring sides in turn."""

import json

import pytest

from benchmarks.rounds import Spread, json_line, measure_in_turn, ratio, table


def test_sides_alternate_and_every_second_round_goes_backwards(capsys: pytest.CaptureFixture[str]) -> None:
    order = list[str]()

    def side(name: str, rate: float) -> float:
        order.append(name)
        return rate

    rates = measure_in_turn({"ours": lambda: side("ours", 3.0), "bare": lambda: side("bare", 4.0)}, rounds=3)
    assert order == ["ours", "bare", "bare", "ours", "ours", "bare"]
    assert rates == {"ours": [3.0] * 3, "bare": [4.0] * 3}
    assert capsys.readouterr().out.splitlines()[2] == "round 3: ours 3, bare 4 images/s"


def test_ratio_is_taken_within_each_round() -> None:
    # The machine is twice as slow in the second round, for both sides.
    assert ratio([8.0, 4.5, 9.0], [10.0, 5.0, 10.0]) == Spread(0.9, 0.8, 0.9)


def test_last_line_holds_medians_and_ranges() -> None:
    line = json_line({"ratio": Spread(0.91239, 0.9, 1.0), "job": Spread(7158.6, 7000.0, 8000.4)}, images=10)
    assert json.loads(line) == {
        "ratio": 0.9124, "ratio_range": [0.9, 1.0], "job": 7159, "job_range": [7000, 8000], "images": 10,
    }  # fmt: skip


def test_table_has_a_row_for_each_spread() -> None:
    assert table({"job": Spread(2.0, 1.0, 3.0)}, "images/s").splitlines()[2] == "| job | 2 | 1 | 3 |"
