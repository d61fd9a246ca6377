"""One writer at a time on a dataset: the kernel's lock on a disk, a lease in an object store."""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator

from glo_core.common.errors import UserError
from glo_core.common.file_lock import file_lock
from glo_core.common.location import Location

RENEWED_EVERY_S = 10.0
EXPIRES_AFTER_S = 4 * RENEWED_EVERY_S
SETTLES_AFTER_S = 1.0
"""Two that take a free lease at once both read it again after this time, and one finds the other's name."""


@contextlib.contextmanager
def exclusive_writer(dataset: Location) -> Iterator[Callable[[], None]]:
    """Keep other writers out of `dataset` for the length of the block.

    Yields a function that raises a `UserError` if a lease was lost: call it before anything is committed.

    Raises:
        UserError: if another live process holds it. A dead one's lock does not hold: on a disk at once, in an object
            store after 40 s.
    """
    if dataset.path is not None:
        with file_lock(dataset.path):
            yield lambda: None
        return
    place, stop = dataset / ".lock", threading.Event()
    mine = {"holder": f"process {os.getpid()} on {socket.gethostname()}", "token": secrets.token_hex(16)}

    def still_held() -> None:
        held = _read(place)
        if held is None or held["token"] != mine["token"]:
            raise UserError(f"{dataset}: in use by {held['holder'] if held else 'another process'}; wait for it to end")

    _wait_until_free(dataset, place)
    _renew(place, mine)
    time.sleep(SETTLES_AFTER_S)
    still_held()
    keeper = threading.Thread(target=_keep, args=(place, mine, stop, still_held), daemon=True)
    keeper.start()
    try:
        yield still_held
    finally:
        stop.set()
        keeper.join()
        with contextlib.suppress(UserError):  # One that was lost is another's.
            still_held()
            place.unlink()


def _keep(place: Location, mine: dict[str, str], stop: threading.Event, still_held: Callable[[], None]) -> None:
    while not stop.wait(RENEWED_EVERY_S):
        try:
            still_held()
            _renew(place, mine)
        except OSError:  # A store that is away for a moment: the lease lasts four times as long.
            continue
        except UserError:  # Whoever commits next is told.
            return


def _renew(place: Location, mine: dict[str, str]) -> None:
    place.put(json.dumps(mine | {"renewed": time.time_ns()}).encode())


def _wait_until_free(dataset: Location, place: Location) -> None:
    """Return when there is no lease, or one that nobody renews; clocks of other machines do not matter."""
    before, waited = _read(place), 0.0
    while before is not None and waited < EXPIRES_AFTER_S:
        time.sleep(RENEWED_EVERY_S / 5)
        waited += RENEWED_EVERY_S / 5
        now = _read(place)
        if now is not None and now != before:
            raise UserError(f"{dataset}: in use by {now['holder']}; wait for it to end, or stop it")
        before = now


def _read(place: Location) -> dict[str, str] | None:
    try:
        return dict(json.loads(place.read_bytes()))
    except FileNotFoundError:
        return None
