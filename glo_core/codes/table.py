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
from glo_core.common.arrays import Int, Int64Array
from glo_core.common.shapes import Bool, Float, Shaped, Tensor


def _on_host(tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Host memory, uninitialized, for a copy of `tensor`."""
    return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)


def raw_name(config: CodeConfig) -> str:
    """The format's name of the optimized values: in the ball they are the codes themselves."""
    return "raw" if config.projection == "sphere" else "code"


@runtime_checkable
class Table(Protocol):
    """What the loop needs of the codes of one rank: `CodeTable`, or `WindowedTable` where memory is short."""

    ids: Int64Array
    """Image id of each row, int64 `[n]`"""

    @property
    def config(self) -> CodeConfig:
        """The codes' part of the recipe."""
        ...

    @property
    def resident(self) -> "CodeTable":
        """The rows in memory; a step works on these."""
        ...

    def begin_epoch(self, windows: Sequence[Int[Int64Array, " _"]]) -> None:
        """Take the order in which each lane will visit its windows.

        Args:
            windows: of each lane of this rank, its windows' numbers in the lane in the order of their visits, int64.
        """
        ...

    def fetch(self, rows: Int[Int64Array, " b"], on_device: Int[Tensor, " b"] | None = None) -> Int[Tensor, " b"]:
        """Bring rows into memory; returns their slots in `resident`, int64 `[b]` on the device.

        Args:
            rows: int64 `[b]`.
            on_device: the same numbers on the device, where they are there already.
        """
        ...

    def chunks(self, rows: Int[Int64Array, " n"], limit: int) -> list[Int[Int64Array, " _"]]:
        """Cut `rows` (int64 `[n]`) into chunks of at most `limit` rows that `fetch` can bring at once."""
        ...

    def read(self, first: int, last: int) -> dict[str, Tensor]:
        """All columns of the rows from `first` to before `last`, by the format's names, in host memory."""
        ...

    def write(self, first: int, columns: Mapping[str, Tensor]) -> None:
        """Set columns, by the format's names, of the rows from `first` on; dtype and device are converted."""
        ...

    def codes(self, rows: Int[Tensor, " b"] | slice = ...) -> Float[Tensor, "rows dim"]:
        """Codes as the decoder receives them, `[rows, dim]` on the device, of row numbers (int64 `[b]`) or a slice."""
        ...

    def snapshot(self, into: "CodeTable | None" = None) -> "Table":
        """A table that can be read while training goes on.

        Args:
            into: an older snapshot of this table, whose memory is used again.
        """
        ...


class CodeTable:
    """Codes of the images of one rank, with their optimizer's state.

    Attributes:
        ids: image ids, int64 `[n]`.
        raw: the optimized values, float32 or float64 `[n, dim]`. On the sphere the projection acts in the forward
            pass and these are never normalized; in the ball they are the codes themselves.
        state: what the optimizer keeps of each row, by PyTorch's names: Adam's `exp_avg` and `exp_avg_sq`
            `[n, dim]`, Adagrad's `sum_sq` `[n]`.
        num_updates: number of updates of each row, int32 `[n]`.
    """

    def __init__(self, config: CodeConfig, ids: Int64Array, raw: Float[Tensor, "n dim"]) -> None:
        """Take `raw`, without a copy, as the rows of `ids`, with an optimizer that has not stepped yet."""
        self.config, self.ids = config, ids
        self.raw = raw
        self._optimizer = OPTIMIZERS[config.optimizer]
        self.state: dict[str, Tensor] = self._optimizer.state(raw)
        self.num_updates = torch.zeros(len(raw), dtype=torch.int32, device=raw.device)

    def columns(self) -> dict[str, Tensor]:
        """Everything that a checkpoint keeps of each row, by the format's names: tensors `[n]` or `[n, dim]`."""
        return {raw_name(self.config): self.raw, **self.state, "num_updates": self.num_updates}

    @property
    def resident(self) -> "CodeTable":
        """Itself: every row is in memory."""
        return self

    def begin_epoch(self, windows: Sequence[Int[Int64Array, " _"]]) -> None:
        """Nothing is to be read ahead."""

    def fetch(self, rows: Int[Int64Array, " b"], on_device: Int[Tensor, " b"] | None = None) -> Int[Tensor, " b"]:
        """The numbers `rows` (int64 `[b]`) themselves, on the device."""
        if on_device is not None:
            return on_device
        return torch.from_numpy(rows).to(self.raw.device, non_blocking=True)

    def chunks(self, rows: Int[Int64Array, " n"], limit: int) -> list[Int[Int64Array, " _"]]:
        """Cut `rows` (int64 `[n]`) into chunks of at most `limit` rows."""
        return [rows[start : start + limit] for start in range(0, len(rows), limit)]

    def read(self, first: int, last: int) -> dict[str, Tensor]:
        """All columns of the rows from `first` to before `last`, in host memory."""
        return {name: column[first:last].cpu() for name, column in self.columns().items()}

    def write(self, first: int, columns: Mapping[str, Tensor]) -> None:
        """Set columns of the rows from `first` on; dtype and device are converted."""
        own_columns = self.columns()
        for name, values in columns.items():
            column = own_columns[name]
            column[first : first + len(values)] = values.to(column)

    def snapshot(self, into: "CodeTable | None" = None) -> "CodeTable":
        """A copy in host memory, pinned if this table is on a GPU; `into`, an older one, is overwritten."""
        if into is None:
            into = copy.copy(self)
            into.raw, into.num_updates = _on_host(self.raw), _on_host(self.num_updates)
            into.state = {name: _on_host(column) for name, column in self.state.items()}
        for source, target in zip(self.columns().values(), into.columns().values(), strict=True):
            target.copy_(source)
        return into

    def project(self, raw: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        """Codes as the decoder receives them, of raw rows `[..., dim]`; gradients flow through."""
        return to_sphere(raw) if self.config.projection == "sphere" else raw

    def codes(self, rows: Int[Tensor, " b"] | slice = slice(None)) -> Float[Tensor, "rows dim"]:
        """Codes as the decoder receives them, `[rows, dim]`, of row numbers (int64 `[b]`) or a slice."""
        return self.project(self.raw[rows])

    @torch.no_grad()
    def update(
        self,
        rows: Int[Tensor, " b"],
        grad: Float[Tensor, "b dim"],
        learning_rate: float | Float[Tensor, ""],
        *,
        changed: Bool[Tensor, "b 1"] | None = None,
    ) -> None:
        """Take one step of the optimizer on `rows`; in the ball, codes are projected back into it.

        Args:
            rows: row numbers, int64 `[b]`; one that stands there twice has the same gradient in both places.
            grad: gradient of the sum of the images' losses by the raw rows, `[b, dim]`.
            learning_rate: the step size.
            changed: bool `[b, 1]`, False for rows that stay as they are; None changes all.
        """
        count = self.num_updates[rows] + 1
        state = {name: column[rows] for name, column in self.state.items()}
        raw = self.raw[rows]
        moved = raw - learning_rate * self._optimizer.step(self.config, state, count, grad)
        moved = to_ball(moved) if self.config.projection == "ball" else moved
        self._put(self.raw, rows, moved, changed)
        for name, column in self.state.items():
            self._put(column, rows, state[name], changed)
        self._put(self.num_updates, rows, count, changed)

    @staticmethod
    def _put(column: Tensor, rows: Int[Tensor, " b"], values: Tensor, changed: Bool[Tensor, "b 1"] | None) -> None:
        """Set `rows` of a column to `values` `[b, ...]`, but for those that are not `changed`."""
        if changed is not None:
            values = torch.where(changed if values.ndim > 1 else changed[:, 0], values, column[rows])
        column[rows] = values
