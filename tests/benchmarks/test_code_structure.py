"""Tests of how the code's structure is counted."""

from benchmarks.code_structure import floors


def test_floors_are_the_longest_chain_of_imports() -> None:
    assert floors({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == 3


def test_an_import_back_up_from_a_function_is_no_floor() -> None:
    assert floors({"a": {"b"}, "b": {"a", "c"}, "c": {"c"}}) == 3
