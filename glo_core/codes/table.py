"""The code table of one rank: a row per image, its projection, and the row-wise optimizer.

A step touches the rows of its batch and no other, so that it costs the same however long the table is.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch

from glo_core.codes.config import CodeConfig
from glo_core.codes.projection import to_ball, to_sphere
from glo_core.codes.row_optimizers import OPTIMIZERS
from glo_core.common.arrays import Int64Array
from glo_core.common.shapes import Float, Int, Tensor


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)


def raw_name(config: CodeConfig) -> str:
    """The format's name of the optimized values: in the ball they are the codes themselves."""
    return "raw" if config.projection == "sphere" else "code"


@runtime_checkable
class Table(Protocol):
    """What the loop asks of the codes of one rank: a `CodeTable`, or a `WindowedTable` where memory is short."""

    ids: Int64Array

    @property
    def config(self) -> CodeConfig:
        """The config of the codes."""
        raise NotImplementedError

    @property
    def resident(self) -> "CodeTable":
        """The rows in memory; a step works on these."""
        ...

    def begin_epoch(self, windows: Sequence[Int64Array]) -> None:
        """Learn in which order each lane will visit its windows."""
        ...

    def fetch(self, rows: Int64Array) -> Int[Tensor, " b"]:
        """Slots in `resident` of `rows` (int64 `[b]`), int64 `[b]` on the device."""
        ...

    def chunks(self, rows: Int64Array, limit: int) -> list[Int64Array]:
        """`rows` in pieces that `fetch` can bring at once, of at most `limit` rows."""
        ...

    def read(self, first: int, last: int) -> dict[str, torch.Tensor]:
        """All columns of a run of rows, in host memory, by the format's names."""
        ...

    def write(self, first: int, columns: Mapping[str, torch.Tensor]) -> None:
        """Set columns of the rows from `first` on."""
        ...

    def codes(self, rows: Int[Tensor, " b"] | slice = ...) -> Float[Tensor, "rows dim"]:
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

    def __init__(self, config: CodeConfig, ids: Int64Array, raw: Float[Tensor, "n dim"]) -> None:
        self.config, self.ids = config, ids
        self.raw = raw
        self._optimizer = OPTIMIZERS[config.optimizer]
        self.state: dict[str, torch.Tensor] = self._optimizer.state(raw)
        self.num_updates = torch.zeros(len(raw), dtype=torch.int32, device=raw.device)

    def columns(self) -> dict[str, torch.Tensor]:
        """All that a checkpoint keeps of each row, by the format's names."""
        return {raw_name(self.config): self.raw, **self.state, "num_updates": self.num_updates}

    @property
    def resident(self) -> "CodeTable":
        """Itself: every row is in memory."""
        return self

    def begin_epoch(self, windows: Sequence[Int64Array]) -> None:
        """Nothing: every row is here."""

    def fetch(self, rows: Int64Array) -> Int[Tensor, " b"]:
        """Slots of `rows`: the rows themselves."""
        return torch.from_numpy(rows).to(self.raw.device, non_blocking=True)

    def chunks(self, rows: Int64Array, limit: int) -> list[Int64Array]:
        """`rows` in pieces of at most `limit`."""
        return [rows[start : start + limit] for start in range(0, len(rows), limit)]

    def read(self, first: int, last: int) -> dict[str, torch.Tensor]:
        """All columns of the rows from `first` to before `last`, in host memory."""
        return {name: column[first:last].cpu() for name, column in self.columns().items()}

    def write(self, first: int, columns: Mapping[str, torch.Tensor]) -> None:
        """Set columns of the rows from `first` on."""
        mine = self.columns()
        for name, values in columns.items():
            mine[name][first : first + len(values)] = values.to(mine[name])

    def snapshot(self, into: "CodeTable | None" = None) -> "CodeTable":
        """A copy in host memory, in that of `into` where there is one."""
        if into is None:
            into = copy.copy(self)
            into.raw, into.num_updates = _on_host(self.raw), _on_host(self.num_updates)
            into.state = {name: _on_host(column) for name, column in self.state.items()}
        for mine, theirs in zip(self.columns().values(), into.columns().values(), strict=True):
            theirs.copy_(mine)
        return into

    def project(self, raw: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """Codes as the decoder receives them, from raw rows `[..., dim]`."""
        return to_sphere(raw) if self.config.projection == "sphere" else raw

    def codes(self, rows: Int[Tensor, " b"] | slice = slice(None)) -> Float[Tensor, "rows dim"]:
        """Codes as the decoder receives them, `[rows, dim]`."""
        return self.project(self.raw[rows])

    @torch.no_grad()
    def update(self, rows: Int[Tensor, " b"], grad: Float[Tensor, "b dim"], learning_rate: float) -> None:
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
