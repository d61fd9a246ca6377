"""A decoder that meets a fault while it is trained, in the workers of a Ray head."""

import os
import signal
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

FAULT = Path(tempfile.gettempdir()) / f"glo-fault-{os.environ.get('RAY_AUTH_TOKEN', '')[:16]}"
"""Says what happens: "eio" or the name of a signal once, or "memory" each time; gets a line each time.

The workers share the test's token.
"""
_CALLS = 12
"""Calls in training before the fault"""


class FaultyDecoder(nn.Module):
    """One linear layer, and the kernel's or PyTorch's own error at the twelfth call in training."""

    def __init__(self, code_dim: int, resolution: int, channels: int) -> None:
        super().__init__()
        self.shape = (channels, resolution, resolution)
        self.linear = nn.Linear(code_dim, channels * resolution**2)
        self.calls = 0

    def forward(self, codes: Tensor) -> Tensor:
        self.calls += self.training
        if self.training and self.calls == _CALLS and FAULT.exists():
            self._fail()
        return self.linear(codes).tanh().unflatten(1, self.shape)

    def _fail(self) -> None:
        kind, *earlier = FAULT.read_text().splitlines()
        with FAULT.open("a") as file:
            file.write("met\n")
        if kind == "memory":
            torch.empty(2**50)
        if not earlier and kind.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[kind])
        if not earlier:
            with Path("/proc/self/mem").open("rb", buffering=0) as memory:
                memory.read(1)
