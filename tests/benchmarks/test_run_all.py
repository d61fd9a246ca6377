"""Tests of the page of all benchmarks."""

import ast
import json
import sys
from pathlib import Path

import pytest

from benchmarks import run_all
from benchmarks.run_all import SHORT, page, run
from tests.helpers.paths import ROOT


def test_every_benchmark_has_options_that_make_it_short() -> None:
    scripts = set()
    for path in (ROOT / "benchmarks").glob("*.py"):
        functions = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
        scripts |= {path.stem} if "main" in functions else set()
    assert set(SHORT) == scripts - {"run_all"}


def test_outcome_holds_command_and_figures() -> None:
    outcome = run("code_structure", [], 100)
    assert not outcome.failure
    assert outcome.command == "python -m benchmarks.code_structure"
    assert json.loads(outcome.result)["files"] > 100
    text = page([outcome], [])
    assert "| code_structure | done |" in text
    assert "\n| glo_core |" in text  # A row of its table


@pytest.mark.parametrize(
    ("name", "limit_s", "failure"), [("missing", 100.0, "exit status 1"), ("start_up", 0.3, "not done after 0 s")]
)
def test_a_benchmark_that_fails_is_shown_as_failed(name: str, limit_s: float, failure: str) -> None:
    outcome = run(name, [], limit_s)
    assert outcome.failure == failure
    text = page([outcome], ["train_workers"])
    assert f"| {name} | FAILED: {failure} |" in text
    assert "| train_workers | FAILED: not run |" in text


def test_status_and_page_tell_of_the_end_of_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "bench.md"
    arguments = ["run_all", "--page", str(target), "--only", "code_structure", "--minutes", "0"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert run_all.main() == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["failed"] == ["code_structure"]
    assert "| code_structure | FAILED: not run |" in target.read_text()
