"""The folder of a dataset: its configuration, made and compared; and what writers that died left in it."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence

from glo_core.common.errors import DatasetError, UserError
from glo_core.common.files import differences, sweep_temporary
from glo_core.common.location import Location
from glo_core.dataset_format.config import DatasetConfig, ResolvedDatasetConfig
from glo_core.dataset_format.records import read_config, record_path, write_config
from glo_core.dataset_format.snapshots import Snapshot
from pipelines.preprocess.autodetect import SuggestedFormat, suggest_format
from pipelines.preprocess.plan import uncommitted_files
from pipelines.preprocess.sources import Source

FOLDERS = ("plans", "blocks", "manifest", "snapshots")
"""Of a dataset"""

log = logging.getLogger("glo.preprocess")


def resolve_config(config: DatasetConfig, dataset: Location, sources: Sequence[Source]) -> ResolvedDatasetConfig:
    """`config` with a resolution and channels: its own, else the dataset's, else what suits the images."""
    if record_path(dataset).exists():
        existing = read_config(dataset)
        suggested = SuggestedFormat(existing.resolution, existing.channels)
    elif config.resolution and config.channels:
        suggested = SuggestedFormat(config.resolution, config.channels)
    else:
        suggested = suggest_format(sources, config.tight_crop, config.max_bytes)
    resolution, channels = config.resolution or suggested.resolution, config.channels or suggested.channels
    if not record_path(dataset).exists() and not (config.resolution and config.channels):
        log.info(
            "images become %d px squares of %d channel(s)%s",
            resolution,
            channels,
            "" if config.resolution or config.channels else ", as suits these; both can be set",
        )
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(DatasetConfig)}
    return ResolvedDatasetConfig(**fields | {"resolution": resolution, "channels": channels})


def check_config(dataset: Location, config: ResolvedDatasetConfig) -> None:
    """Raise a `DatasetError` if the dataset is there and has another configuration."""
    if not record_path(dataset).exists():
        return
    changed = differences(dataclasses.asdict(read_config(dataset)), dataclasses.asdict(config))
    if changed:
        raise DatasetError(
            f"{dataset}: was made with another configuration ({'; '.join(changed)}); "
            "give another `dataset`, or the old values"
        )


@contextlib.contextmanager
def no_trace_of_a_mistake(dataset: Location, require_lease: Callable[[], None]) -> Iterator[None]:
    """After a user's error in a first run, forget the configuration, so that another can be given.

    Args:
        require_lease: raises a `DatasetError` if another writer has the dataset now.
    """
    try:
        yield
    except UserError:
        with contextlib.suppress(DatasetError):  # A dataset that is another writer's by now is left alone.
            require_lease()
            forget_if_empty(dataset)
        raise


def forget_if_empty(dataset: Location) -> None:
    """Delete the configuration of a dataset without plans and snapshots."""
    if (dataset / "plans").names() or (dataset / "snapshots").names():
        return
    record_path(dataset).unlink()
    if dataset.path is not None:
        for folder in FOLDERS:
            with contextlib.suppress(OSError):
                (dataset.path / folder).rmdir()


def create(dataset: Location, config: ResolvedDatasetConfig) -> None:
    """Make the folders and `dataset.json` where they are missing; delete what killed writers left."""
    if dataset.path is not None:
        for folder in FOLDERS:
            (dataset.path / folder).mkdir(exist_ok=True)
            sweep_temporary(dataset.path / folder)
        sweep_temporary(dataset.path)
    else:
        for folder in FOLDERS:
            for name in (dataset / folder).names():
                if name.startswith(".") and ".tmp-" in name:
                    (dataset / folder / name).unlink()
    if not record_path(dataset).exists():
        write_config(dataset, config)


def sweep_uncommitted(dataset: Location, snapshots: Sequence[Snapshot]) -> None:
    """Delete parts and blocks that no snapshot lists, of plans that are gone. Call it only where no plan is pending."""
    listed = {block.name.removesuffix(".arrow") for snapshot in snapshots for block in snapshot.blocks}
    for place in uncommitted_files(dataset, 1):
        if place.name.rpartition(".")[0] not in listed:
            place.unlink()
