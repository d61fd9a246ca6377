"""The dataset of a run: where the run's record says, or in the same place beside a run that has moved."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from glo_core.checkpoint.run_record import RUN_FILE, read_run_record
from glo_core.common.errors import CheckpointError, DatasetError
from glo_core.common.location import Location
from glo_core.data.dataset import Dataset

_HOST_SCHEMES = ("hdfs://", "viewfs://")
_HARMLESS_OPTIONS = {"region", "project_id", "retry_limit_seconds", "allow_bucket_creation", "allow_bucket_deletion"}
_LEVELS = 4
"""How many folders above the run, and of the dataset's path, are looked at"""


def dataset_of_run(run: Path, snapshot: str, place: Location | None = None) -> Dataset:
    """The dataset that `run` was trained on, at the snapshot of digest `snapshot`.

    Args:
        place: where it is; None looks where the run's record says and where `find_dataset` does.

    Raises:
        CheckpointError: if no place is given and the run's record names none.
        DatasetError: if no dataset is there, it is damaged, or it is another one.
    """
    if place is not None:
        return Dataset.open(place).at(snapshot)
    dataset = find_dataset(run, snapshot)
    if dataset is not None:
        return dataset
    record = read_run_record(run)
    if record is None or "dataset" not in record.paths:
        raise CheckpointError(f"{run / RUN_FILE}: does not say where the dataset lies; copy it back, or give `dataset`")
    if _chooses_server(Location(record.paths["dataset"])):
        raise CheckpointError(
            f"{run / RUN_FILE}: names the server of its dataset ({record.paths['dataset']}), which a file must not "
            "choose; if you trust it, give the same place as `dataset`"
        )
    raise DatasetError(
        f"{record.paths['dataset']}: the dataset of {run} is not there any more, nor in the same place beside the run; "
        "give its place as `dataset`"
    )


def find_dataset(run: Path, snapshot: str) -> Dataset | None:
    """The dataset that the record of `run` names, at the snapshot of digest `snapshot`; None if it is nowhere.

    A record that chooses the server that is connected to names none.

    Where the recorded place has it no more, the places that lie to the run as that place may have lain to it: a root
    that was moved or copied as a whole needs nothing said. The chain of digests tells whether a dataset is the same.

    Raises:
        UserError: if the run's record is damaged, or the only dataset that is there is damaged or another one.
        OSError: if the store of the recorded place does not answer.
    """
    record = read_run_record(run)
    if record is None or "dataset" not in record.paths:
        return None
    recorded = Location(record.paths["dataset"])
    if _chooses_server(recorded):
        return None
    complaint: Exception | None = None
    for place in (recorded, *_moved_with(run, recorded)):
        try:
            if (place / "dataset.json").exists():
                return Dataset.open(place).at(snapshot)
        except (DatasetError, OSError) as error:
            complaint = complaint or error
    if complaint is not None:
        raise complaint
    return None


def _chooses_server(place: Location) -> bool:
    """Whether `place` names the host that is connected to, and not only a bucket of its provider.

    The record of somebody else's run could send this machine's requests, which carry a session token, anywhere.
    """
    options = (place.store or "").partition("?")[2]
    names = {option.partition("=")[0].lower() for option in unquote(options).split("&") if option}
    return (place.store or "").startswith(_HOST_SCHEMES) or not names <= _HARMLESS_OPTIONS


def _moved_with(run: Path, recorded: Location) -> Iterator[Location]:
    """Each folder above `run` with the last parts of the recorded path below it, the nearest first."""
    if recorded.path is None:
        return
    parts = recorded.path.parts[1:]
    for folder in run.absolute().parents[:_LEVELS]:
        for count in range(1, min(len(parts), _LEVELS) + 1):
            place = Location(folder.joinpath(*parts[-count:]))
            if place != recorded:
                yield place
