"""How often a block was begun: a mark on disk, so that whoever begins it again learns that somebody died on it.

Ray repeats a task whose process or node dies. The mark outlives both, and the job itself.
"""

import json
from typing import NamedTuple

from glo_core.common.errors import DatasetError
from glo_core.common.files import write_bytes
from glo_core.common.location import Location
from glo_core.dataset_format.manifest import part_name

MAX_ATTEMPTS = 4
"""Times that one run begins a block"""


class Attempt(NamedTuple):
    """A block that is being decoded."""

    mark: Location
    number: int
    """1 for the first time in this run"""
    repeated: bool
    """Whether somebody, in this run or an earlier one, began the block and did not end it"""

    def end(self) -> None:
        """Take the mark away: the files were decoded."""
        self.mark.unlink()


def begin_attempt(dataset: Location, plan: int, block: int, run: str) -> Attempt:
    """Write down that the process has begun block `block` of plan number `plan`.

    Args:
        run: random text that is the same in all tasks of one run.

    Raises:
        DatasetError: if this run has begun it `MAX_ATTEMPTS` times.
    """
    mark = dataset / "blocks" / f".{part_name(plan, block)}.begun"
    try:
        earlier = json.loads(mark.read_bytes())
    except FileNotFoundError:
        earlier = None
    except ValueError:
        earlier = {}
    count = earlier["attempts"] if earlier and earlier["run"] == run else 0
    if count >= MAX_ATTEMPTS:
        raise DatasetError(
            f"{dataset}: the process that decodes block {block} of plan {plan} was killed {count} times, though every "
            "image and container had a process beside it; if memory is short, give the machine more, and run the same "
            "command again"
        )
    write_bytes(mark, json.dumps({"run": run, "attempts": count + 1}).encode())
    return Attempt(mark, count + 1, earlier is not None)
