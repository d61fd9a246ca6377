"""What all stages share, without Ray and without MLflow."""

import json
from pathlib import Path
from typing import Any

import pytest

from glo_core.common.errors import CheckpointError
from glo_core.common.records import read_record
from pipelines.common.records import PhaseRecord, RenderDone, RunRecord, TrainDone
from pipelines.common.stage import Stage, open_stage, run_id_of
from pipelines.common.tracking_config import TrackingConfig

RECIPE = {"seed": 1, "window": 0, "rate": 0.1, "code": {"dim": 2, "optimizer": "adam"}, "filters": [16, 8]}


def opened(directory: Path, identity: dict[str, Any], *, name: str = "render", finish: bool = False) -> Stage[Any]:
    with open_stage(
        name,
        directory,
        root=directory.parent,
        identity=identity,
        inputs={},
        done_type=RenderDone,
        tracking=TrackingConfig(),
    ) as stage:
        stage.save()
        if finish:
            stage.finish(RenderDone(grids=("a", "b")))
        return stage


def test_another_recipe_is_refused_by_the_keys_that_differ(tmp_path: Path) -> None:
    opened(tmp_path, RECIPE)
    with pytest.raises(CheckpointError, match=r"another recipe \(window: 0 -> 7\)"):
        opened(tmp_path, {**RECIPE, "window": 7})
    with pytest.raises(CheckpointError, match=r"another recipe \(code.optimizer: adam -> sgd\)"):
        opened(tmp_path, {**RECIPE, "code": {"dim": 2, "optimizer": "sgd"}})
    with pytest.raises(CheckpointError, match="holds the outcome of render, not of train"):
        opened(tmp_path, RECIPE, name="train")
    opened(tmp_path, RECIPE)


def test_a_finished_stage_is_one_whose_outputs_are_there(tmp_path: Path) -> None:
    opened(tmp_path, RECIPE, finish=True)
    again = opened(tmp_path, RECIPE)
    assert again.done == RenderDone(grids=("a", "b"))
    assert again.record.identity == RECIPE
    (tmp_path / "done.json").unlink()
    assert opened(tmp_path, RECIPE).done is None


def test_the_records_are_plain_json_with_format_and_version(tmp_path: Path) -> None:
    opened(tmp_path, RECIPE, finish=True)
    run, done = (json.loads((tmp_path / name).read_text()) for name in ("run.json", "done.json"))
    assert (run["format"], run["format_version"], run["stage"]) == ("glo-run", 1, "render")
    assert run["identity"] == RECIPE
    assert done == {"format": "glo-done", "format_version": 1, "grids": ["a", "b"]}


def altered(path: Path, **changes: Any) -> None:
    """Write other values into a record; None deletes the key."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


@pytest.mark.parametrize("name", ["run.json", "done.json"])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"format": None},
            r"is of a format from before the first release; train anew into another run directory "
            r"\(a warm start from this run is not possible\)",
        ),
        ({"format_version": "2"}, "format_version='2' must be a whole number, such as 1"),
        ({"format_version": 2}, r"format_version=2 is newer than this program reads \(1\); update it"),
        ({"identity": None, "grids": None}, "lacks the key '(identity|grids)'; the file is damaged, copy it back"),
        ({"identity": [1], "grids": 7}, r"(identity|grids)=.*: must be (an object|a list); the file is damaged"),
    ],
)
def test_a_record_that_cannot_be_read_is_one_line_and_stays(
    tmp_path: Path, name: str, changes: dict[str, Any], reason: str
) -> None:
    opened(tmp_path, RECIPE, finish=True)
    altered(tmp_path / name, **changes)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(CheckpointError, match=f"^{tmp_path}/{name}: {reason}") as caught:
        opened(tmp_path, RECIPE)
    assert "\n" not in str(caught.value)
    assert (tmp_path / name).read_bytes() == before


def test_a_file_cut_short_is_one_line(tmp_path: Path) -> None:
    opened(tmp_path, RECIPE)
    path = tmp_path / "run.json"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match=r"run.json: not valid JSON \(40 bytes\); the file may be cut short"):
        run_id_of(tmp_path)


def test_phases_are_saved(tmp_path: Path) -> None:
    phases = (PhaseRecord(start=0, target=96, snapshot="ab"), PhaseRecord(start=96, target=200, snapshot="cd"))
    stage = opened(tmp_path, RECIPE)
    stage.record = RunRecord(**{**vars(stage.record), "phases": phases})
    stage.save()
    assert opened(tmp_path, RECIPE).record.phases == phases
    done = TrainDone(images_seen=200, psnr=float("inf"), pca_psnr=20.5, phase=1, snapshot="cd")
    stage.finish(done)
    assert read_record(tmp_path / "done.json", TrainDone) == done
