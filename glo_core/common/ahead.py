"""Work that a thread does one item ahead of who needs it."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def one_ahead(calls: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Yield the result of each of `calls`, in order; a thread makes the next one while the caller has the last one.

    An error of a call is raised where its result would be yielded.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        results = (pool.submit(call) for call in calls)
        result = next(results, None)
        while result is not None:
            next_result = next(results, None)
            yield result.result()
            result = next_result
