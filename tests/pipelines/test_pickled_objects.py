"""A dataset and a run of somebody else, whose Parquet and Arrow files would run code: one line, and nothing runs."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import glo_core as glo
from glo_core.checkpoint.reader import Checkpoint
from glo_core.common.digests import digest_file
from glo_core.common.errors import DatasetError, UserError
from glo_core.common.location import Location
from pipelines.config import EvaluateJob, FitPriorJob, InspectJob, RenderJob
from pipelines.evaluate import evaluate
from pipelines.fit_prior import fit_prior
from pipelines.inspect_dataset import inspect_dataset
from pipelines.render import render
from tests.helpers.paths import ROOT
from tests.helpers.pickled_objects import is_registered, pickled, pickled_field, register
from tests.helpers.preprocess_small import preprocess_small
from tests.helpers.write_images import write_images

GOLDEN = ROOT / "tests" / "golden" / "v1"


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """The type is registered in this process, as after `import ray.data` by somebody else."""
    register()
    yield
    if is_registered():
        pa.unregister_extension_type("ray.data.arrow_pickled_object")


def spoil_parquet(path: Path, column: str, trace: Path) -> None:
    """Make `column` of a Parquet file one whose values make the file `trace` when they are read."""
    table = pq.read_table(path, partitioning=None)
    index = table.column_names.index(column)
    table = table.set_column(index, pickled_field(column), pickled(trace, len(table)))
    pq.write_table(table, path)


def spoil_arrow(path: Path, column: str, trace: Path) -> None:
    with pa.OSFile(str(path)) as file:
        reader = pa.ipc.open_file(file)
        batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
    index = batches[0].schema.names.index(column)
    schema = batches[0].schema.set(index, pickled_field(column))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as file:
        for batch in batches:
            columns = batch.columns
            columns[index] = pickled(trace, len(batch))
            file.write_batch(pa.record_batch(columns, schema=schema))


CONFIG = glo.TrainConfig(
    batch_size=8, code=glo.CodeConfig(dim=3), decoder=glo.DecoderConfig(kind="seed", filters=(4,), kernel_size=3)
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run, not yet spoiled."""
    images = glo.Dataset.open(GOLDEN / "dataset")
    glo.train(images, config=CONFIG, images_seen=40, run=tmp_path / "run", progress=False)
    return tmp_path / "run"


def spoil(run: Path) -> None:
    """Make the codes of `run` such that reading them runs code, with the digests of what is written."""
    for checkpoint in (run / "checkpoints").iterdir():
        mark = json.loads((checkpoint / "checkpoint.json").read_text())
        for name, part in mark["parts"].items():
            if name.startswith("codes/"):
                spoil_arrow(checkpoint / name, "code", run.parent / "it-ran")
                part |= {"bytes": (checkpoint / name).stat().st_size, "blake3": digest_file(checkpoint / name)}
        (checkpoint / "checkpoint.json").write_text(json.dumps(mark))


def render_spoiled(run: Path) -> object:
    """Draw grids of a spoiled run whose prior says that it belongs to it."""
    fit_prior(FitPriorJob(run=run))
    old = Checkpoint.latest(run).digest
    spoil(run)
    for record in run.glob("prior/*/run.json"):
        record.write_text(record.read_text().replace(old, Checkpoint.latest(run).digest))
    return render(RenderJob(run=run))


def train(images_seen: int, run: Path | None, warm_start: Path | None = None) -> object:
    images = glo.Dataset.open(GOLDEN / "dataset")
    return glo.train(images, config=CONFIG, images_seen=images_seen, run=run, warm_start=warm_start, progress=False)


def spoiled(read: Callable[[Path], object]) -> Callable[[Path], object]:
    def spoil_and_read(run: Path) -> object:
        spoil(run)
        return read(run)

    return spoil_and_read


READ_CODES: dict[str, Callable[[Path], object]] = {
    "load": spoiled(lambda run: glo.load(run).codes()),
    "resume": spoiled(lambda run: train(1000, run)),
    "fit_prior": spoiled(lambda run: fit_prior(FitPriorJob(run=run))),
    "render": render_spoiled,
    "evaluate": spoiled(lambda run: evaluate(EvaluateJob(run=run))),
}


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize("reader", READ_CODES)
def test_codes_of_a_foreign_run(run: Path, tmp_path: Path, reader: str) -> None:
    with pytest.raises(UserError, match=r"codes/shard=00\d\.arrow: column code \(ray\.data\.arrow_pickled_object\)"):
        READ_CODES[reader](run)
    assert not (tmp_path / "it-ran").exists()


def test_a_warm_start_reads_no_code(run: Path, tmp_path: Path) -> None:
    spoil(run)
    train(16, None, warm_start=run)
    assert not (tmp_path / "it-ran").exists()


PARTS: dict[str, tuple[str, str, Callable[[Path, str, Path], None], Callable[[Path], Any]]] = {
    "plan": ("plans/000001.parquet", "member", spoil_parquet, lambda d: preprocess_small(d, d.parent / "images")),
    "manifest": (
        "manifest/000001-00000.parquet",
        "reason",
        spoil_parquet,
        lambda d: inspect_dataset(InspectJob(dataset=Location(d))),
    ),
    "verified": (
        "manifest/000001-00000.parquet",
        "path",
        spoil_parquet,
        lambda d: inspect_dataset(InspectJob(dataset=Location(d), verify=True)),
    ),
    "block": ("blocks/000001-00000.arrow", "image", spoil_arrow, lambda d: glo.Dataset.open(d).images()),
    "ids of a block": ("blocks/000001-00000.arrow", "image_id", spoil_arrow, lambda d: glo.Dataset.open(d).images()),
}


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize("part", PARTS)
def test_parts_of_a_foreign_dataset(tmp_path: Path, part: str) -> None:
    write_images(tmp_path / "images", 12, seed=0)
    preprocess_small(tmp_path / "dataset", tmp_path / "images")
    name, column, spoil_part, read = PARTS[part]
    register()
    spoil_part(tmp_path / "dataset" / name, column, tmp_path / "it-ran")
    with pytest.raises(DatasetError, match=rf"{name}: column {column} \(ray\.data\.arrow_pickled_object\)") as caught:
        read(tmp_path / "dataset")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "it-ran").exists()
