"""A table whose windows lie on disk against one in memory: the same operations leave the same bits."""

import contextlib
import itertools
import time
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from glo_core.codes import windowed_table
from glo_core.codes.config import ResolvedCodeConfig
from glo_core.codes.table import CodeTable
from glo_core.codes.windowed_table import SLOTS_PER_LANE, WindowedTable
from glo_core.common.arrays import Int64Array

DIM = 2
CPU = torch.device("cpu")
DELAY = 0.0003
"""Seconds that a slow disk takes for each column: more than the steps between two uses of a slot"""


def delayed(name: str) -> Any:
    """The function `name` of the module, on a slow disk: what is not waited for comes too late."""
    copy = getattr(windowed_table, name)

    def copy_slowly(*arguments: Any) -> None:
        time.sleep(DELAY)
        copy(*arguments)

    return copy_slowly


class Tables(RuleBasedStateMachine):
    """The same operations on a `WindowedTable` and on a `CodeTable`."""

    @initialize(
        sizes=st.lists(st.integers(0, 26), min_size=1, max_size=3).filter(any),
        window=st.integers(1, 4),
        optimizer=st.sampled_from(["adam", "adagrad", "sgd"]),
        projection=st.sampled_from(["sphere", "ball"]),
        seed=st.integers(0, 99),
        slow=st.sampled_from(["", "_copy_in", "_copy_out"]),
    )
    def make(
        self,
        sizes: list[int],
        window: int,
        optimizer: Literal["adam", "adagrad", "sgd"],
        projection: Literal["sphere", "ball"],
        seed: int,
        slow: str,
    ) -> None:
        """Two tables of the same codes; lanes of up to 26 rows in windows of up to 4 have more windows than slots."""
        self.patch = mock.patch.object(windowed_table, slow, delayed(slow)) if slow else contextlib.nullcontext()
        self.patch.__enter__()
        self.random = np.random.default_rng(seed)
        self.window = window
        self.first = np.concatenate([[0], np.cumsum(sizes)])
        self.lanes = len(sizes)
        config = ResolvedCodeConfig(dim=DIM, optimizer=optimizer, projection=projection)
        ids = 3 * np.arange(self.first[-1]) + 1
        self.model = CodeTable(config, ids, torch.zeros(len(ids), DIM))
        self.table = WindowedTable(config, ids, self.first, window, device=CPU, dtype=torch.float32)
        self.order: list[Int64Array] = []
        self.place = 0
        self.write_all()

    def write_all(self) -> None:
        columns = {name: self.values(column) for name, column in self.model.columns().items()}
        self.model.write(0, columns)
        self.table.write(0, columns)

    def values(self, column: torch.Tensor) -> torch.Tensor:
        """New values for a column: positive, as sums of squares are."""
        values = torch.from_numpy(self.random.integers(1, 1000, column.shape))
        return values.to(column.dtype) / (1 if column.dtype == torch.int32 else 2048)

    def teardown(self) -> None:
        if hasattr(self, "table"):
            self.assert_same_rows(0, len(self.model.ids))
            self.table._pool.shutdown()
            self.patch.__exit__(None, None, None)

    # ---------------------------------------------------------------- rows of a step

    def update(self, rows: Int64Array) -> None:
        """One step of the optimizer on `rows`, which must be unique."""
        gradient = torch.from_numpy(self.random.normal(size=(len(rows), DIM))).float()
        slots = self.table.fetch(rows)
        assert torch.equal(self.table.resident.raw[slots], self.model.raw[rows])
        self.table.resident.update(slots, gradient, 0.1)
        self.model.update(torch.from_numpy(rows), gradient, 0.1)

    def windows_of(self, lane: int) -> int:
        return -(-int(self.first[lane + 1] - self.first[lane]) // self.window)

    def rows_of(self, lane: int, windows: Int64Array) -> Int64Array:
        """A random half of the rows of some windows of a lane, shuffled."""
        # [window, place in the window]
        rows = windows[:, None] * self.window + np.arange(self.window) + self.first[lane]
        rows = rows[rows < self.first[lane + 1]]
        return self.random.permutation(rows)[: -(-len(rows) // 2)].astype(np.int64)

    @rule(most=st.integers(1, SLOTS_PER_LANE))
    def step_anywhere(self, most: int) -> None:
        """Rows of any windows, as many of each lane as it has slots."""
        of_lanes = []
        for lane in range(self.lanes):
            count = self.windows_of(lane)
            windows = self.random.choice(count, min(most, count), replace=False)
            of_lanes.append(self.rows_of(lane, windows))
        self.update(np.concatenate(of_lanes))

    @rule()
    def begin_epoch(self) -> None:
        """Announce a new order of the windows."""
        self.order = [self.random.permutation(self.windows_of(lane)).astype(np.int64) for lane in range(self.lanes)]
        self.place = 0
        self.table.begin_epoch(self.order)
        self.model.begin_epoch(self.order)

    @rule(steps=st.integers(1, 6), both=st.booleans())
    def steps_in_order(self, steps: int, both: bool) -> None:
        """Steps of an epoch, whose windows are read ahead: of one window of each lane, or of two neighbours."""
        for _ in range(steps):
            of_lanes = [
                self.rows_of(lane, order[self.place : self.place + 1 + both])
                for lane, order in enumerate(self.order)
                if self.place < len(order)
            ]
            if not of_lanes:
                return
            self.update(np.concatenate(of_lanes))
            self.place += 1

    @rule(back=st.integers(2, 4))
    def step_back(self, back: int) -> None:
        """Rows of windows that the epoch has just left, which may be on their way to the disk."""
        of_lanes = [self.rows_of(lane, order[self.place - back :][:1]) for lane, order in enumerate(self.order)]
        if of_lanes and self.place >= back:
            self.update(np.concatenate(of_lanes))

    @rule(limit=st.integers(1, 5), share=st.floats(0, 1))
    def update_in_chunks(self, limit: int, share: float) -> None:
        """Rows of any number of windows, in chunks of which each can be fetched at once."""
        rows = np.flatnonzero(self.random.random(len(self.model.ids)) < share)
        chunks = self.table.chunks(rows, limit)
        assert [row for chunk in chunks for row in chunk] == rows.tolist()
        for chunk in chunks:
            assert 0 < len(chunk) <= limit
            self.update(chunk)

    @rule()
    def codes_of_rows(self) -> None:
        """Codes of rows of a window of each lane, some of them twice."""
        of_lanes = [
            self.rows_of(lane, self.random.integers(0, count, 1))
            for lane in range(self.lanes)
            if (count := self.windows_of(lane))
        ]
        rows = torch.from_numpy(np.concatenate([*of_lanes, of_lanes[0]]))
        assert torch.equal(self.table.codes(rows), self.model.codes(rows))

    # ---------------------------------------------------------------- runs of rows

    def run_of_rows(self, ends: tuple[float, float]) -> tuple[int, int]:
        first, last = sorted(int(end * len(self.model.ids)) for end in ends)
        return first, last

    def assert_same_rows(self, first: int, last: int) -> None:
        columns, expected = self.table.read(first, last), self.model.read(first, last)
        assert columns.keys() == expected.keys()
        for name, column in columns.items():
            assert column.dtype == expected[name].dtype
            assert torch.equal(column, expected[name]), name

    @rule(ends=st.tuples(st.floats(0, 1), st.floats(0, 1)))
    def read(self, ends: tuple[float, float]) -> None:
        self.assert_same_rows(*self.run_of_rows(ends))

    @rule(ends=st.tuples(st.floats(0, 1), st.floats(0, 1)), every_column=st.booleans())
    def write(self, ends: tuple[float, float], every_column: bool) -> None:
        """New values for some rows: of all columns, or of the codes alone."""
        first, last = self.run_of_rows(ends)
        columns = {name: self.values(column[first:last]) for name, column in self.model.columns().items()}
        columns = columns if every_column else dict(itertools.islice(columns.items(), 1))
        self.table.write(first, columns)
        self.model.write(first, columns)

    @rule(ends=st.tuples(st.floats(0, 1), st.floats(0, 1)))
    def codes_of_a_run(self, ends: tuple[float, float]) -> None:
        rows = slice(*self.run_of_rows(ends))
        assert torch.equal(self.table.codes(rows), self.model.codes(rows))

    @rule()
    def flush(self) -> None:
        self.table.flush()

    @rule()
    def snapshot(self) -> None:
        """What a checkpoint writes."""
        copy, expected = self.table.snapshot(), self.model.snapshot()
        for name, column in copy.read(0, len(self.model.ids)).items():
            assert torch.equal(column, expected.columns()[name])


TestTables = Tables.TestCase
# Not shrunk: waiting for the slow disk again and again would take minutes.
PHASES = [Phase.explicit, Phase.reuse, Phase.generate]
TestTables.settings = settings(max_examples=100, stateful_step_count=30, phases=PHASES)
