import numpy as np

from glo_core.common.counter_rng import key64, mix64, normal, uniform


def test_hash_is_a_bijection_of_ids() -> None:
    ids = np.arange(100_000, dtype=np.int64)
    assert len(np.unique(mix64(7, ids))) == len(ids)


def test_uniform_and_normal_have_their_moments() -> None:
    ids = np.arange(200_000, dtype=np.int64)
    assert abs(uniform(3, ids).mean() - 0.5) < 0.003
    values = normal(3, ids, 3)
    assert np.abs(values.mean(0)).max() < 0.01
    assert np.abs(np.cov(values.T) - np.eye(3)).max() < 0.02


def test_a_row_of_normals_depends_on_its_id_alone() -> None:
    whole, part = normal(5, np.arange(10, dtype=np.int64), 4), normal(5, np.array([7, 2]), 4)
    np.testing.assert_array_equal(part, whole[[7, 2]])


def test_keys_tell_numbers_from_text() -> None:
    assert len({key64(1), key64("1"), key64(1, 1), key64("1", "1"), key64(11)}) == 5
