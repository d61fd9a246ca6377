"""A run of somebody else names modules to import and functions to call: none of them is imported or called."""

import json
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import glo_core as glo
import jobs.evaluate
import jobs.fit_prior
import jobs.pipeline
import jobs.render
import jobs.train
from glo_core import UserError
from glo_core.checkpoint.run_dataset import dataset_of_run, find_dataset
from glo_core.checkpoint.run_record import RUN_FILE
from glo_core.common.digests import digest_file
from glo_core.common.location import Location
from jobs.cli import main, parse
from pipelines.config import EvaluateJob, FitPriorJob, PipelineJob, RenderJob
from pipelines.train.config import TrainJob
from pipelines.train.job import run_training
from tests.helpers.paths import ROOT
from tests.helpers.tiny_training import RESOLVED
from tests.jobs.test_saved_config import change, save

GOLDEN = ROOT / "tests/golden/v1"
TRAP = """
from pathlib import Path
import torch

Path(__file__).with_name("sprung").touch()


class Decoder(torch.nn.Module):
    def __init__(self, **shape):
        super().__init__()
        Path(__file__).with_name("sprung").touch()


network = Decoder
"""

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(autouse=True)
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module `trap` in the working directory, on Python's path and beside the run, that leaves a file if imported."""
    for folder in (tmp_path, tmp_path / "run"):
        folder.mkdir(exist_ok=True)
        (folder / "trap.py").write_text(TRAP)
        monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(tmp_path)
    yield
    assert "trap" not in sys.modules
    assert not list(tmp_path.rglob("sprung"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a checkpoint, whose `decoder.json` names the trap."""
    run = tmp_path / "run"
    shutil.copytree(GOLDEN / "run", run, dirs_exist_ok=True)
    save(run, RESOLVED, {"dataset": str(GOLDEN / "dataset")})
    checkpoint = run / "checkpoints/63"
    decoder, mark = (json.loads((checkpoint / name).read_text()) for name in ("decoder.json", "checkpoint.json"))
    decoder["config"] |= {"kind": "trap:Decoder", "filters": [], "kernel_size": 3}
    (checkpoint / "decoder.json").write_text(json.dumps(decoder))
    part = checkpoint / "decoder.json"
    mark["parts"]["decoder.json"] = {"bytes": part.stat().st_size, "blake3": digest_file(part)}
    (checkpoint / "checkpoint.json").write_text(json.dumps(mark))
    return run


def fails(name: str, job: Any, command: Any, argv: list[str]) -> str:
    """The one line that a command ends with."""
    with pytest.raises(SystemExit) as caught:
        main(name, job, command.run, saved_config=command.saved_config, argv=argv)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    return line


EDITS: dict[str, Edit] = {
    "kind": lambda identity: identity["decoder"].update(kind="trap:Decoder", filters=[], kernel_size=3),
    "os": lambda identity: identity["decoder"].update(kind="os:system", filters=[], kernel_size=3),
    "network": lambda identity: identity.update(perceptual_network="trap:network", loss="perceptual"),
    "network without a function": lambda identity: identity.update(perceptual_network="trap", loss="perceptual"),
}
ALIASES: dict[str, Edit] = {
    "dotted kind": lambda identity: identity.update({"decoder.kind": "trap:Decoder"}),
    "dashed network": lambda identity: identity.update({"perceptual-network": "trap:network", "loss": "perceptual"}),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_resuming_a_run_imports_nothing_that_its_record_names(run: Path, edit: Edit) -> None:
    shutil.rmtree(run / "checkpoints")
    change(run, edit)
    argv = ["--dataset", str(GOLDEN / "dataset"), "--run", str(run)]
    line = fails("train", TrainJob, jobs.train, argv)
    flag = "--decoder.kind" if "kind" in line else "--perceptual-network"
    assert line.startswith(f"train: error: {run / RUN_FILE}: names code to import ({flag}")
    assert f"give {flag} yourself" in line


@pytest.mark.parametrize("edit", ALIASES.values(), ids=ALIASES)
def test_another_spelling_of_a_setting_in_a_record_is_no_setting(run: Path, edit: Edit) -> None:
    change(run, edit)
    argv = ["--dataset", str(GOLDEN / "dataset"), "--run", str(run)]
    job = parse("train", TrainJob, argv=argv, saved_config=jobs.train.saved_config)
    assert (job.decoder.kind, job.perceptual_network) == (RESOLVED.decoder.kind, "vgg16")


def test_a_whole_pipeline_imports_nothing_that_its_run_names(tmp_path: Path, run: Path) -> None:
    change(run, EDITS["network without a function"])
    shutil.copytree(GOLDEN / "dataset", tmp_path / "dataset")
    argv = ["--input", str(GOLDEN), "--root", str(tmp_path)]
    job = parse("pipeline", PipelineJob, argv=argv, saved_config=jobs.pipeline.saved_config)
    assert job.train.perceptual_network == "vgg16"


STAGES = [
    ("render", RenderJob, jobs.render, "grids"),
    ("evaluate", EvaluateJob, jobs.evaluate, "evaluation"),
    ("fit_prior", FitPriorJob, jobs.fit_prior, "prior"),
]


@pytest.mark.parametrize(("name", "kind", "command", "folder"), STAGES)
def test_the_record_of_a_stage_sets_only_what_is_its_identity(
    name: str, kind: Any, command: Any, folder: str, run: Path
) -> None:
    stage = run / folder / "63"
    stage.mkdir(parents=True)
    record = json.loads((run / RUN_FILE).read_text()) | {"stage": name}
    chosen = {"decoder_kind": "trap:Decoder", "tracking_uri": "http://evil.example", "experiment": "x", "run": "/etc"}
    record["identity"] = {**chosen, "decoder-kind": "trap:Decoder", "seed": 7}
    (stage / RUN_FILE).write_text(json.dumps(record))
    job = parse(name, kind, argv=["--run", str(run)], saved_config=command.saved_config)
    assert (job.run, job.tracking_uri, job.experiment) == (run, None, "glo")
    assert getattr(job, "decoder_kind", None) is None
    assert getattr(job, "seed", 7) == 7


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize(("name", "kind", "command"), [stage[:3] for stage in STAGES[:2]])
def test_a_stage_imports_no_decoder_that_the_checkpoint_names(name: str, kind: Any, command: Any, run: Path) -> None:
    if name == "render":
        prior_job = parse("fit_prior", FitPriorJob, argv=["--run", str(run)])
        jobs.fit_prior.run(prior_job)
    line = fails(name, kind, command, ["--run", str(run)])
    assert "this class is imported only if your own command names it too: --decoder-kind trap:Decoder" in line


def test_a_notebook_imports_nothing_that_a_run_names(run: Path) -> None:
    images = glo.Dataset.open(GOLDEN / "dataset")
    with pytest.raises(UserError, match=r'glo\.load\(run, decoder="trap:Decoder"\)'):
        glo.load(run)
    for edit in EDITS.values():
        save(run, RESOLVED)
        change(run, edit)
        with pytest.raises(UserError, match=rf"^{run / RUN_FILE}: names code to import \(`.*give `.*` yourself"):
            glo.train(images, run=run, progress=False)
    for decoder in (glo.DecoderConfig(), glo.DecoderConfig(kind="seed", filters=(4,))):
        config = glo.TrainConfig(batch_size=8, code=glo.CodeConfig(dim=3), decoder=decoder)
        with pytest.raises(UserError, match="has another decoder"):
            glo.train(images, config=config, warm_start=run, images_seen=8, progress=False)


def test_a_warm_start_imports_nothing(tmp_path: Path, run: Path) -> None:
    job = TrainJob(dataset=Location(GOLDEN / "dataset"), run=tmp_path / "new", warm_start=run, batch_size=8)
    with pytest.raises(UserError, match=r"`warm_start` .*has another decoder \(.*decoder\.kind: trap:Decoder -> dcgan"):
        run_training(job)


@pytest.mark.parametrize(
    "place", ["s3://bucket/d?endpoint_override=127.0.0.1:PORT&scheme=http", "hdfs://127.0.0.1:PORT/d"]
)
def test_a_run_chooses_no_server_that_is_connected_to(place: str, run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        place = place.replace("PORT", str(server.getsockname()[1]))
        save(run, RESOLVED, {"dataset": place})
        with pytest.raises(UserError, match=r"names the server of its dataset .*give the same place as `dataset`"):
            dataset_of_run(run, "0")
        assert find_dataset(run, "0") is None
        with pytest.raises(BlockingIOError):
            server.accept()
