"""The code table of one rank: a row per image, its projection, and the row-wise optimizer.

A step touches the rows of its batch and no other, so that it costs the same however long the table is.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from glo_core.config import Config
from glo_core.hashing import Int64Array


@dataclass(frozen=True, kw_only=True)
class CodeConfig(Config):
    """The latent codes and their optimizer."""

    dim: int = 0
    """Latent dimensions; 0 for the images' resolution, but 16 at least and 128 at most"""
    start: Literal["pca", "random"] = "pca"
    """Codes start from the images' principal components, or from a Gaussian"""
    start_scale: float = 1.0
    """Root mean square norm of random start codes"""
    projection: Literal["sphere", "ball"] = "sphere"
    """Unit sphere in the forward pass (seed), or unit ball after each update (paper)"""
    optimizer: Literal["adam", "adagrad", "sgd"] = "adam"
    """Row by row: Adam with each row's own count, Adagrad with one scalar per row, or plain gradient descent"""
    learning_rate: float = 2e-2
    """The optimizer's step size for codes at the schedule's peak"""
    schedule: Literal["same", "cosine", "constant", "step"] = "same"
    """Of the codes' learning rate: the decoder's, or one of its own"""
    beta1: float = 0.5
    """Decay of Adam's first moment, per update of the row (a row has one update an epoch)"""
    beta2: float = 0.9
    """Decay of Adam's second moment, per update of the row"""
    decay: float = 0.0
    """Weight of half the squared norm of a raw code beside its image's loss"""

    def __post_init__(self) -> None:
        if self.dim < 0:
            raise ValueError(f"`code.dim` (={self.dim}) must be at least 1, or 0 for the rule's")
        if not self.learning_rate >= 0:
            raise ValueError(f"`code.learning_rate` (={self.learning_rate}) must be at least 0")
        if not self.start_scale > 0:
            raise ValueError(f"`code.start_scale` (={self.start_scale}) must be above 0")
        if not self.decay >= 0:
            raise ValueError(f"`code.decay` (={self.decay}) must be at least 0")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`code.{name}` (={getattr(self, name)}) must be at least 0 and below 1")


def to_sphere(codes: torch.Tensor) -> torch.Tensor:
    """z / |z|, for codes `[..., dim]`."""
    return torch.nn.functional.normalize(codes, dim=-1)


def to_ball(codes: torch.Tensor) -> torch.Tensor:
    """z / max(1, |z|), for codes `[..., dim]` (arXiv 1707.05776, section 3.3)."""
    return codes / codes.norm(dim=-1, keepdim=True).clamp_min(1)


PROJECTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"sphere": to_sphere, "ball": to_ball}


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)


def raw_name(config: CodeConfig) -> str:
    """The format's name of the optimized values: in the ball they are the codes themselves."""
    return "raw" if config.projection == "sphere" else "code"


class Adam:
    """Adam (Kingma and Ba, algorithm 1), each row with its own count of updates."""

    @staticmethod
    def state(raw: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"exp_avg": torch.zeros_like(raw), "exp_avg_sq": torch.zeros_like(raw)}

    @staticmethod
    def step(config: CodeConfig, state: dict[str, torch.Tensor], count: torch.Tensor, grad: torch.Tensor) -> Any:
        mean = state["exp_avg"] = torch.lerp(grad, state["exp_avg"], config.beta1)
        square = state["exp_avg_sq"] = torch.lerp(grad * grad, state["exp_avg_sq"], config.beta2)
        # A step count of the whole run would leave rarely met rows without bias correction.
        unbiased_mean = mean / (1 - config.beta1 ** count.to(mean)).unsqueeze(1)
        unbiased_square = square / (1 - config.beta2 ** count.to(mean)).unsqueeze(1)
        return unbiased_mean / (unbiased_square.sqrt() + 1e-8)


class Adagrad:
    """Row-wise Adagrad: one sum of mean squared gradients per row (Gupta et al., arXiv 1404.4909; BigGraph)."""

    @staticmethod
    def state(raw: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum_sq": torch.zeros_like(raw[:, 0])}

    @staticmethod
    def step(config: CodeConfig, state: dict[str, torch.Tensor], count: torch.Tensor, grad: torch.Tensor) -> Any:
        total = state["sum_sq"] = state["sum_sq"] + grad.square().mean(dim=1)
        return grad / (total.sqrt() + 1e-10).unsqueeze(1)


class Sgd:
    @staticmethod
    def state(raw: torch.Tensor) -> dict[str, torch.Tensor]:
        return {}

    @staticmethod
    def step(config: CodeConfig, state: dict[str, torch.Tensor], count: torch.Tensor, grad: torch.Tensor) -> Any:
        return grad


OPTIMIZERS: dict[str, Any] = {"adam": Adam, "adagrad": Adagrad, "sgd": Sgd}


class Table(Protocol):
    """What the loop asks of the codes of one rank: `CodeTable`, or `windows.WindowedTable` where memory is short."""

    config: CodeConfig
    ids: Int64Array

    @property
    def held(self) -> "CodeTable":
        """The rows in memory; a step works on these."""
        ...

    def begin_epoch(self, windows: Sequence[Int64Array]) -> None:
        """Learn in which order each lane will visit its windows."""
        ...

    def bring(self, rows: Int64Array) -> torch.Tensor:
        """Places in `held` of `rows` (int64 `[b]`), int64 `[b]` on the device."""
        ...

    def runs(self, rows: Int64Array, limit: int) -> list[Int64Array]:
        """`rows` in pieces that `bring` can bring at once, of at most `limit` rows."""
        ...

    def read(self, first: int, last: int) -> dict[str, torch.Tensor]:
        """All columns of a run of rows, in host memory, by the format's names."""
        ...

    def write(self, first: int, columns: Mapping[str, torch.Tensor]) -> None:
        """Set columns of the rows from `first` on."""
        ...

    def codes(self, rows: torch.Tensor | slice = ...) -> torch.Tensor:
        """Codes as the decoder receives them, `[rows, dim]`, on the device."""
        ...

    def snapshot(self, into: "CodeTable | None" = None) -> "Table":
        """What can be read while training goes on; in the memory of `into`, an older one, where there is one."""
        ...


class CodeTable:
    """Codes of the images of one rank, with their optimizer's state.

    Attributes:
        ids: image ids, int64 `[n]`.
        raw: the optimized values, `[n, dim]`. On the sphere the projection acts in the forward pass and these
            are never normalized; in the ball they are the codes themselves.
        state: what the optimizer keeps of each row, by PyTorch's names: Adam's `exp_avg` and `exp_avg_sq`
            `[n, dim]`, Adagrad's `sum_sq` `[n]`.
        num_updates: how often each row was updated, int32 `[n]`.
    """

    def __init__(self, config: CodeConfig, ids: Int64Array, raw: torch.Tensor) -> None:
        self.config, self.ids = config, ids
        self.raw = raw
        self._optimizer = OPTIMIZERS[config.optimizer]
        self.state: dict[str, torch.Tensor] = self._optimizer.state(raw)
        self.num_updates = torch.zeros(len(raw), dtype=torch.int32, device=raw.device)

    def columns(self) -> dict[str, torch.Tensor]:
        """All that a checkpoint keeps of each row, by the format's names."""
        return {raw_name(self.config): self.raw, **self.state, "num_updates": self.num_updates}

    @property
    def held(self) -> "CodeTable":
        return self

    def begin_epoch(self, windows: Sequence[Int64Array]) -> None:
        """Nothing: every row is here."""

    def bring(self, rows: Int64Array) -> torch.Tensor:
        return torch.from_numpy(rows).to(self.raw.device, non_blocking=True)

    def runs(self, rows: Int64Array, limit: int) -> list[Int64Array]:
        return [rows[start : start + limit] for start in range(0, len(rows), limit)]

    def read(self, first: int, last: int) -> dict[str, torch.Tensor]:
        return {name: column[first:last].cpu() for name, column in self.columns().items()}

    def write(self, first: int, columns: Mapping[str, torch.Tensor]) -> None:
        mine = self.columns()
        for name, values in columns.items():
            mine[name][first : first + len(values)] = values.to(mine[name])

    def snapshot(self, into: "CodeTable | None" = None) -> "CodeTable":
        if into is None:
            into = copy.copy(self)
            into.raw, into.num_updates = _on_host(self.raw), _on_host(self.num_updates)
            into.state = {name: _on_host(column) for name, column in self.state.items()}
        for mine, theirs in zip(self.columns().values(), into.columns().values(), strict=True):
            theirs.copy_(mine)
        return into

    def project(self, raw: torch.Tensor) -> torch.Tensor:
        """Codes as the decoder receives them, from raw rows `[..., dim]`."""
        return to_sphere(raw) if self.config.projection == "sphere" else raw

    def codes(self, rows: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        """Codes as the decoder receives them, `[rows, dim]`."""
        return self.project(self.raw[rows])

    @torch.no_grad()
    def update(self, rows: torch.Tensor, grad: torch.Tensor, learning_rate: float) -> None:
        """One step of the optimizer on `rows`.

        Args:
            rows: unique row numbers, int64 `[b]`.
            grad: gradient of the sum of the images' losses by the raw rows, `[b, dim]`.
        """
        count = self.num_updates[rows] + 1
        state = {name: column[rows] for name, column in self.state.items()}
        raw = self.raw[rows] - learning_rate * self._optimizer.step(self.config, state, count, grad)
        self.raw[rows] = to_ball(raw) if self.config.projection == "ball" else raw
        for name, column in self.state.items():
            column[rows] = state[name]
        self.num_updates[rows] = count
