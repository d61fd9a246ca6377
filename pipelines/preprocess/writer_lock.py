"""One writer at a time on a dataset: the kernel's lock on a disk, a lease in an object store.

pyarrow's stores cannot write an object only where there is none. So a lease is taken under a claim, an object whose
name nobody else uses: put the claim, then list the claims; go on only where the own one is alone. Of two claims, each
is put before its writer lists, so that at least one of the two lists shows both: never do both writers go on. All
that this needs is that a listing shows what was put before, as S3, GCS, Azure and MinIO promise.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from glo_core.common.errors import DatasetError
from glo_core.common.file_lock import file_lock
from glo_core.common.location import Location

RENEWED_EVERY_S = 10.0
EXPIRES_AFTER_S = 4 * RENEWED_EVERY_S
SETTLES_AFTER_S = 1.0
"""Time between two looks at the claims of others"""
CLAIM = ".lock."
"""What the name of a claim begins with; the holder's token follows"""


class Lease(NamedTuple):
    """Who writes to a dataset in an object store, as `.lock` there holds it."""

    holder: str
    """For people: process and host"""
    token: str
    """Random, one for each holder"""
    renewed: int
    """Nanoseconds since 1970 by the holder's clock"""


@contextlib.contextmanager
def exclusive_writer(dataset: Location) -> Iterator[Callable[[], None]]:
    """Keep other writers out of `dataset` for the length of the block.

    Yields a function that raises a `DatasetError` if the lease was lost: call it before anything is committed.

    Raises:
        DatasetError: if another live process holds the lock. A dead one's lock does not hold: on a disk at once, in an
            object store after 40 s.
    """
    if dataset.path is not None:
        with file_lock(dataset.path, DatasetError):
            yield lambda: None
        return
    place, stop = dataset / ".lock", threading.Event()
    lease = Lease(f"process {os.getpid()} on {socket.gethostname()}", secrets.token_hex(16), renewed=0)

    def require_lease() -> None:
        current = _read(place)
        if current is None or current.token != lease.token:
            raise _in_use(dataset, current)

    _take(dataset, place, lease, require_lease)
    renewer = threading.Thread(target=_renew_until, args=(stop, place, lease, require_lease), daemon=True)
    renewer.start()
    try:
        yield require_lease
    finally:
        stop.set()
        renewer.join()
        with contextlib.suppress(DatasetError):  # A lease that was lost is another's.
            require_lease()
            place.unlink()


def _take(dataset: Location, place: Location, lease: Lease, require_lease: Callable[[], None]) -> None:
    """Write `lease` to `place` once nobody else holds or takes it."""
    claim = dataset / f"{CLAIM}{lease.token}"
    while True:
        dead = _wait_until_free(dataset, place)
        _renew(claim, lease)
        try:
            others = _other_claims(dataset, claim)
            if others and min(others) < claim.name:
                claim.unlink()  # The lowest goes on, the others make room for it and look again.
                _wait_for_others(dataset, claim)
                continue
            _wait_for_others(dataset, claim)
            current = _read(place)
            if current != dead:
                raise _in_use(dataset, current)
            _renew(place, lease)
            if not claim.exists():  # It was taken for a dead one's.
                place.unlink()
                raise _in_use(dataset, None)
            require_lease()
            return
        finally:
            claim.unlink()


def _other_claims(dataset: Location, claim: Location) -> list[str]:
    return [name for name in dataset.names() if name.startswith(CLAIM) and name != claim.name]


def _wait_for_others(dataset: Location, claim: Location) -> None:
    """Return when there is no other claim; those that stay are of writers that died, and are deleted."""
    waited = 0.0
    while others := _other_claims(dataset, claim):
        if waited >= EXPIRES_AFTER_S:
            for name in others:
                (dataset / name).unlink()
            return
        time.sleep(SETTLES_AFTER_S)
        waited += SETTLES_AFTER_S


def _in_use(dataset: Location, lease: Lease | None) -> DatasetError:
    holder = lease.holder if lease else "another process"
    return DatasetError(f"{dataset}: in use by {holder}; wait for it to end, or stop it")


def _renew_until(stop: threading.Event, place: Location, lease: Lease, require_lease: Callable[[], None]) -> None:
    while not stop.wait(RENEWED_EVERY_S):
        try:
            require_lease()
            _renew(place, lease)
        except OSError:  # A store that is away for a moment: the lease lasts four times as long.
            continue
        except DatasetError:  # The main thread asks before it commits.
            return


def _renew(place: Location, lease: Lease) -> None:
    place.put(json.dumps(lease._replace(renewed=time.time_ns())._asdict()).encode())


def _wait_until_free(dataset: Location, place: Location) -> Lease | None:
    """Return when there is no lease, or one that nobody renews, which is returned.

    Clocks of other machines do not matter.
    """
    last, waited = _read(place), 0.0
    while last is not None and waited < EXPIRES_AFTER_S:
        time.sleep(RENEWED_EVERY_S / 5)
        waited += RENEWED_EVERY_S / 5
        current = _read(place)
        if current is not None and current != last:
            raise _in_use(dataset, current)
        last = current
    return last


def _read(place: Location) -> Lease | None:
    """The lease at `place`, or None if there is none."""
    try:
        values = json.loads(place.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        values = None
    if not isinstance(values, dict) or values.keys() != set(Lease._fields):
        raise DatasetError(f"{place}: not a whole lease; delete it if nothing writes to the dataset")
    return Lease(**values)
