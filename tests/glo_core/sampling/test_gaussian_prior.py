import functools
import json
from pathlib import Path

import numpy as np
import pytest

from glo_core.common.errors import CheckpointError
from glo_core.sampling.gaussian_prior import GaussianPrior, Moments


@pytest.fixture
def codes() -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.normal(size=(4000, 3)) @ [[1, 0.8, 0], [0, 0.5, 0], [0, 0, 0.1]] + [0.5, 0, -1]


def test_merged_moments_are_those_of_all_codes(codes: np.ndarray) -> None:
    pieces = [Moments.of(codes[a:b]) for a, b in ((0, 7), (7, 7), (7, 1000), (1000, 4000))]
    merged = functools.reduce(Moments.merge, pieces)
    assert merged.count == 4000
    np.testing.assert_allclose(merged.mean, codes.mean(0), rtol=1e-12)
    np.testing.assert_allclose(merged.covariance, np.cov(codes.T), rtol=1e-10, atol=1e-12)


def test_samples_have_the_fitted_moments_and_stay_in_the_ball(codes: np.ndarray) -> None:
    inside = codes / 100
    moments = Moments.of(inside)
    full = GaussianPrior.fit("full", moments, "ball").sample(40_000, seed=0).numpy()
    np.testing.assert_allclose(np.cov(full.T), moments.covariance, atol=4e-6)
    diagonal = GaussianPrior.fit("diagonal", moments, "ball").sample(40_000, seed=0).numpy()
    np.testing.assert_allclose(np.cov(diagonal.T), np.diag(np.diag(moments.covariance)), atol=4e-6)
    unit = GaussianPrior.fit("unit", moments, "sphere").sample(100, seed=0)
    np.testing.assert_allclose(unit.norm(dim=1).numpy(), 1)


def test_a_sample_depends_on_its_number_and_not_on_how_many_are_drawn(codes: np.ndarray) -> None:
    prior = GaussianPrior.fit("full", Moments.of(codes), "sphere")
    few, many = prior.sample(3, seed=4), prior.sample(50, seed=4)
    np.testing.assert_array_equal(few.numpy(), many[:3].numpy())


def test_a_prior_survives_the_disk(codes: np.ndarray, tmp_path: Path) -> None:
    prior = GaussianPrior.fit("diagonal", Moments.of(codes), "ball")
    prior.save(tmp_path)
    again = GaussianPrior.load(tmp_path)
    assert (again.kind, again.projection) == ("diagonal", "ball")
    np.testing.assert_array_equal(again.factor, prior.factor)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": "glo-run"}, "format='glo-run', where 'glo-prior' is needed"),
        ({"format_version": "2"}, "format_version='2' must be a whole number"),
        ({"kind": "round"}, 'kind="round": must be unit, or diagonal, or full; the file is damaged'),
        ({"projection": None}, "projection=null: must be sphere, or ball; the file is damaged"),
    ],
)
def test_a_record_that_cannot_be_read_is_one_line(
    codes: np.ndarray, tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    GaussianPrior.fit("diagonal", Moments.of(codes), "ball").save(tmp_path)
    path = tmp_path / "prior.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match=f"^{path}: {reason}"):
        GaussianPrior.load(tmp_path)
