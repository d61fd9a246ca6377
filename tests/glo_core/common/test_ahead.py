import functools
import threading

import pytest

from glo_core.common.ahead import one_ahead


def test_results_come_in_order_and_one_is_made_ahead() -> None:
    begun = [threading.Event() for _ in range(3)]

    def call(number: int) -> int:
        begun[number].set()
        return number

    results = one_ahead(functools.partial(call, number) for number in range(3))
    assert next(results) == 0
    assert begun[1].wait(10)  # While the first is in use.
    assert not begun[2].is_set()
    assert list(results) == [1, 2]


def test_nothing_to_call_yields_nothing() -> None:
    assert list(one_ahead([])) == []


def test_an_error_comes_in_its_place() -> None:
    def fail() -> int:
        raise ValueError("second")

    results = one_ahead([lambda: 1, fail, lambda: 3])
    assert next(results) == 1
    with pytest.raises(ValueError, match="second"):
        next(results)
