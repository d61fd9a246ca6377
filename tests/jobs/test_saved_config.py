"""What `jobs/train.py` makes of the recipe that its run has saved."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import jobs.train
from glo_core import UserError
from glo_core.checkpoint.run_record import RUN_FILE, PhaseRecord, RunRecord
from glo_core.common.records import write_record
from glo_core.decoder.config import ResolvedDecoderConfig
from glo_core.training.phases import identity_of
from jobs.cli import parse
from pipelines.train.config import TrainJob
from tests.helpers.tiny_training import RESOLVED

OWN = dataclasses.replace(RESOLVED, decoder=ResolvedDecoderConfig(kind="mine:Decoder", filters=(), norm_group=32))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save(tmp_path, RESOLVED)
    return tmp_path


def save(run: Path, recipe: Any, paths: dict[str, str] | None = None) -> None:
    record = RunRecord(
        stage="train",
        identity=identity_of(recipe, None, None),
        inputs={},
        paths=paths or {},
        versions={},
        phases=(PhaseRecord(start=0, target=100, snapshot="0"),),
    )
    write_record(run / RUN_FILE, record)


def change(run: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads((run / RUN_FILE).read_text())
    edit(record["identity"])
    (run / RUN_FILE).write_text(json.dumps(record))


def train(run: Path, *flags: str) -> TrainJob:
    argv = ["--dataset", "/", "--run", str(run), *flags]
    return parse("train", TrainJob, argv=argv, saved_config=jobs.train.saved_config)


def test_the_recipe_of_the_run_is_taken(run: Path) -> None:
    job = train(run)
    assert (job.batch_size, job.code.dim) == (RESOLVED.batch_size, RESOLVED.code.dim)
    assert job.decoder.filters == RESOLVED.decoder.filters


def test_a_run_outlives_the_one_that_it_was_warm_started_from(run: Path) -> None:
    save(run, RESOLVED, {"warm_start": "/deleted/run"})
    assert train(run).warm_start == Path("/deleted/run")
    assert train(run, "--warm-start", "/deleted/run").warm_start == Path("/deleted/run")
    assert train(run, "--warm-start", "off").warm_start is None
    with pytest.raises(UserError, match=r"^--warm-start /deleted/other: no such file or folder"):
        train(run, "--warm-start", "/deleted/other")


def test_a_decoder_of_the_users_own_resumes_where_the_command_names_it(run: Path) -> None:
    save(run, OWN)
    job = train(run, "--decoder.kind", "mine:Decoder")
    assert (job.decoder.kind, job.decoder.filters) == ("mine:Decoder", ())


def test_a_run_of_objects_is_continued_where_it_began(run: Path) -> None:
    change(run, lambda identity: identity.update(objects={"decoder": "Mine"}))
    with pytest.raises(UserError, match=rf"^{run}: was trained by glo\.train with objects of its own"):
        train(run)


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (lambda identity: identity["code"].update(dim="abc"), 'code.dim="abc": must be a whole number'),
        (lambda identity: identity.update(code=5), "code=5: must be an object"),
        (lambda identity: identity.update(learning_rate=None), "learning_rate=null: must be a number"),
        (lambda identity: identity.pop("batch_size"), "lacks the key 'batch_size'"),
    ],
)
def test_a_damaged_record_is_not_blamed_on_a_flag(
    run: Path, edit: Callable[[dict[str, Any]], object], line: str
) -> None:
    change(run, edit)
    with pytest.raises(UserError) as caught:
        train(run)
    assert str(caught.value) == f"{run / RUN_FILE}: identity: {line}; the file is damaged, copy it back"
