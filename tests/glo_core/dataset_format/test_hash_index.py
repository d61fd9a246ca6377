"""The index of hashes against a dict of whole hashes, with halves so few that they collide."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glo_core.dataset_format.hash_index import HashIndex, halves, key_array, key_column

HALF = st.sampled_from([0, 1, 2, 2**63, 2**64 - 1])
KEYS = st.lists(st.tuples(HALF, HALF), max_size=40)


def columns(keys: list[tuple[int, int]]) -> np.ndarray:
    return np.array(keys, np.uint64).reshape(-1, 2)


@pytest.mark.parametrize("keep_last", [False, True])
@given(keys=KEYS, queries=KEYS)
def test_the_index_answers_like_a_dict_though_high_halves_collide(
    keep_last: bool, keys: list[tuple[int, int]], queries: list[tuple[int, int]]
) -> None:
    row_of: dict[tuple[int, int], int] = {}
    for row, key in enumerate(keys):
        if keep_last or key not in row_of:
            row_of[key] = row
    index = HashIndex(columns(keys), keep_last=keep_last)
    assert len(index) == len(row_of)
    # Of `keys` every query is present; of `queries` most are absent from a short index.
    for lookups in (keys, queries):
        rows = index.look_up(columns(lookups))
        assert rows.dtype == np.int64
        assert rows.tolist() == [row_of.get(key, -1) for key in lookups]


@given(hashes=st.lists(st.binary(min_size=16, max_size=16), max_size=20), cut=st.integers(0, 20))
def test_halves_sort_like_the_bytes_and_survive_arrow(hashes: list[bytes], cut: int) -> None:
    keys = halves(b"".join(hashes))
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    assert [hashes[row] for row in order] == sorted(hashes)
    array = key_array(b"".join(hashes))
    assert array.to_pylist() == hashes
    # A column in two chunks, the second of which does not begin at its buffer's first byte
    column = pa.chunked_array([array[:cut], array[cut:]], pa.binary(16))
    np.testing.assert_array_equal(halves(key_column(column)), keys)
