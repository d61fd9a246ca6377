"""Whose an error is: the user's in one line, or the machine's, which another attempt may not meet."""

import errno
import os
from pathlib import Path

import pytest
import torch

import glo_core as glo
from glo_core.common.failures import user_error_of
from tests.helpers.tiny_training import CONFIG


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ENOTCONN])
def test_an_error_of_the_machine_is_not_the_users(number: int) -> None:
    assert user_error_of(OSError(number, os.strerror(number), "/run/x")) is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS])
def test_a_full_disk_and_a_refusal_are_the_users_in_one_line_that_names_the_file(number: int) -> None:
    error = user_error_of(OSError(number, os.strerror(number), "/run/x"))
    assert error is not None
    assert str(error).startswith(f"/run/x: {os.strerror(number).lower()}; ")
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has a total capacity of ..."),
        RuntimeError("CUDA error: out of memory\nCompile with ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_too_little_memory_is_the_users_and_names_the_remedy(error: Exception) -> None:
    line = str(user_error_of(error))
    assert line.startswith("out of memory (")
    assert "use a smaller `batch_size`, or keep fewer codes in memory by `window`" in line
    assert "\n" not in line


def test_other_errors_of_pytorch_are_not_the_users() -> None:
    assert user_error_of(RuntimeError("[gloo] Connection closed by peer")) is None


def test_a_notebook_gets_the_line_too(blobs: torch.Tensor, tmp_path: Path) -> None:
    def hungry(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if len(prediction) > 16:
            torch.empty(2**50)
        return (prediction - target).square().mean((1, 2, 3))

    with pytest.raises(glo.UserError, match=r"^out of memory \(.*\); use a smaller `batch_size`"):
        glo.train(blobs, config=CONFIG, images_seen=300, run=tmp_path, loss=hungry, progress=False)
