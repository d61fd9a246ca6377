"""One writer at a time on a dataset: the kernel's lock on a disk, a lease in an object store."""

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
"""Two that take a free lease at once both read it again after this time, and one of them reads the other's name."""


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
            holder = current.holder if current else "another process"
            raise DatasetError(f"{dataset}: in use by {holder}; wait for it to end")

    _wait_until_free(dataset, place)
    _renew(place, lease)
    time.sleep(SETTLES_AFTER_S)
    require_lease()
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


def _wait_until_free(dataset: Location, place: Location) -> None:
    """Return when there is no lease, or one that nobody renews; clocks of other machines do not matter."""
    last, waited = _read(place), 0.0
    while last is not None and waited < EXPIRES_AFTER_S:
        time.sleep(RENEWED_EVERY_S / 5)
        waited += RENEWED_EVERY_S / 5
        current = _read(place)
        if current is not None and current != last:
            raise DatasetError(f"{dataset}: in use by {current.holder}; wait for it to end, or stop it")
        last = current


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
