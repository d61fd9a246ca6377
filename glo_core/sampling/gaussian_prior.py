"""The prior over codes: moments that merge over shards, and the Gaussians fitted to them."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch

from glo_core.codes.projection import PROJECTIONS
from glo_core.common.arrays import Float64Array
from glo_core.common.counter_rng import key64, normal
from glo_core.common.errors import CheckpointError, UserError
from glo_core.common.files import write_bytes
from glo_core.common.records import Record, read_record, write_record
from glo_core.common.shapes import Float, Tensor
from glo_core.common.tensor_files import read_tensors, tensor_bytes
from glo_core.sampling.config import Kind

Projection = Literal["sphere", "ball"]


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of codes, in float64."""

    count: int
    mean: Float64Array
    """`[dim]`"""
    scatter: Float64Array
    """Sum of outer products of deviations from the mean, `[dim, dim]`"""

    @classmethod
    def of(cls, codes: npt.ArrayLike) -> "Moments":
        """Moments of `codes` `[n, dim]`."""
        values = np.asarray(codes, np.float64)
        mean = values.mean(0) if len(values) else np.zeros(values.shape[1])
        return cls(len(values), mean, (values - mean).T @ (values - mean))

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both sets together (Chan, Golub and LeVeque, 1979)."""
        count = self.count + other.count
        if not count:
            return self
        delta = other.mean - self.mean
        return dataclasses.replace(
            self,
            count=count,
            mean=self.mean + delta * other.count / count,
            scatter=self.scatter + other.scatter + np.outer(delta, delta) * (self.count * other.count / count),
        )

    @property
    def covariance(self) -> Float64Array:
        """Sample covariance, `[dim, dim]`."""
        return self.scatter / max(self.count - 1, 1)


@dataclass(frozen=True, kw_only=True)
class PriorRecord(Record):
    """What `prior.json` holds."""

    format: ClassVar[str] = "glo-prior"
    error: ClassVar[type[UserError]] = CheckpointError
    anew: ClassVar[str] = "train anew into another run directory, and fit the prior to that run"

    family: Literal["gaussian"] = "gaussian"
    kind: Kind
    projection: Projection
    code_dim: int


_BLOCK = 32
"""Codes that are sampled together"""


@dataclass(frozen=True)
class GaussianPrior:
    """A Gaussian over codes, projected like the codes themselves after sampling."""

    kind: Kind
    projection: Projection
    mean: Float64Array
    """`[dim]`"""
    factor: Float64Array
    """F of the covariance F F^T, `[dim, dim]`"""

    @classmethod
    def fit(cls, kind: Kind, moments: Moments, projection: Projection) -> "GaussianPrior":
        """The Gaussian of `kind` to codes with these `moments`; `unit` is N(0, I) whatever they are."""
        dim = len(moments.mean)
        if kind == "unit":
            return cls(kind, projection, np.zeros(dim), np.eye(dim))
        if kind == "diagonal":
            return cls(kind, projection, moments.mean, np.diag(np.sqrt(np.diag(moments.covariance))))
        # An eigenvalue factor, unlike Cholesky's, exists where codes do not fill every dimension.
        variances, vectors = np.linalg.eigh(moments.covariance)
        return cls(kind, projection, moments.mean, vectors * np.sqrt(variances.clip(0)))

    def sample(self, count: int, seed: int) -> Float[Tensor, "count dim"]:
        """Codes as the decoder receives them, float64 `[count, dim]`; code i depends on `seed` and i alone."""
        # Products of another number of rows round otherwise: every block has the same number.
        blocks = [self._block(first, seed) for first in range(0, max(count, 1), _BLOCK)]
        return PROJECTIONS[self.projection](torch.from_numpy(np.concatenate(blocks)[:count]))

    def _block(self, first: int, seed: int) -> Float64Array:
        """mean + F e with e ~ N(0, I), for the codes from `first` on, `[_BLOCK, dim]`."""
        noise = normal(key64("sample", seed), np.arange(first, first + _BLOCK, dtype=np.int64), len(self.mean))
        return self.mean + noise @ self.factor.T

    def save(self, directory: Path) -> None:
        """Write `prior.safetensors`, then `prior.json`."""
        tensors = {"mean": torch.from_numpy(self.mean.copy()), "factor": torch.from_numpy(self.factor.copy())}
        write_bytes(directory / "prior.safetensors", tensor_bytes(tensors))
        record = PriorRecord(kind=self.kind, projection=self.projection, code_dim=len(self.mean))
        write_record(directory / "prior.json", record)

    @classmethod
    def load(cls, directory: Path) -> "GaussianPrior":
        """Read what `save` wrote.

        Raises:
            CheckpointError: if the record or the tensors are missing, damaged, or of another format or version.
        """
        record = read_record(directory / "prior.json", PriorRecord)
        tensors = read_tensors(directory / "prior.safetensors", ("mean", "factor"))
        return cls(record.kind, record.projection, tensors["mean"].numpy(), tensors["factor"].numpy())
