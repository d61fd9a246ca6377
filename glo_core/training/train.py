"""`glo.train`: one call from images to a model, for notebooks and scripts.

images, settings -> recipe by the rules -> run.json -> `train_phase` -> model
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glo_core.checkpoint.reader import Checkpoint
from glo_core.common.errors import CheckpointError, ConfigError
from glo_core.common.file_lock import file_lock
from glo_core.common.runtime import Runtime, SingleProcess
from glo_core.data.config import Cache
from glo_core.data.dataset import Dataset
from glo_core.decoder.config import MODULE, DecoderConfig
from glo_core.losses.weighted_sum import Loss
from glo_core.open_run import default_device, image_source
from glo_core.training.config import Autocast, Compile, Intervals, TrainConfig
from glo_core.training.hooks import OnPreview, OnReport, ProgressBar, RuntimeWithHooks
from glo_core.training.loop import TrainResult
from glo_core.training.session import TrainingSession


def train(
    images: Any,
    *,
    config: TrainConfig | None = None,
    images_seen: float | None = None,
    run: str | Path | None = None,
    decoder: torch.nn.Module | None = None,
    loss: Loss | None = None,
    on_report: OnReport | None = None,
    on_preview: OnPreview | None = None,
    should_stop: Callable[[], bool] | None = None,
    intervals: Intervals | None = None,
    warm_start: str | Path | None = None,
    cache: Cache = "auto",
    autocast: Autocast = "auto",
    compile: Compile = "auto",
    scratch: str | Path | None = None,
    runtime: Runtime | None = None,
    progress: bool = True,
) -> TrainResult:
    """Train a model of `images`; `TrainResult.model` offers all that can be done with it.

    With a `run`, training keeps checkpoints there. The same call again resumes an interrupted training, and returns the
    trained model at once where it has reached `images_seen`. A larger `images_seen` trains on. So do images that were
    added: to a dataset, or behind those of the tensor.

    Args:
        images: uint8 `[n, H, W, C]`, or `[n, H, W]` of gray images, as a tensor or a NumPy array, square with a side of
            4 * 2^n px; or a `Dataset`; or any `ImageSource`.
        config: the recipe; the rules of `docs/training.md` choose what it leaves open. By default the recipe of `run`,
            if there is one.
        images_seen: images to see in all; None leaves it to the rule.
        run: directory of the run, made if it is not there; a leading ~ is the home directory. None keeps everything
            in memory.
        decoder: codes `[b, code_dim]` to images `[b, C, H, W]` in [-1, 1], in place of the one that `config` names. It
            is copied and trained from its weights as they are; its batch norms become exact at every world size. No
            file holds its class: `glo.load` and the next call need it again.
        loss: prediction and target, `[b, C, H, W]` in [-1, 1], to one loss per image `[b]`, in place of the one that
            `config` names.
        on_report: called with images seen and metrics at every report.
        on_preview: called with images seen, a name and a PIL image: reconstructions, and samples, as training goes on.
        should_stop: asked every eighth step; True ends training with a checkpoint.
        intervals: how often reports, previews and checkpoints come.
        warm_start: another run, whose EMA decoder is the initial one of a new run.
        cache: where images lie while training: "device", "host", "disk", or "auto".
        autocast: "bfloat16", "off", or "auto": bfloat16 where the device computes in it in hardware. Weights, codes and
            losses stay float32.
        compile: "on", "off", or "auto": `torch.compile` on a GPU.
        scratch: directory on a local disk for codes that `config.window` keeps out of memory.
        runtime: ranks and their device; by default one process on the GPU, if there is one.
        progress: show a bar, if the package tqdm is installed.

    Raises:
        ConfigError: if `images` or a setting has a wrong value, or they do not go together.
        CheckpointError: if `run` belongs to another recipe or other images, or is damaged.
        DivergedError: if the loss is no longer finite.
        UserError: if `run` is in use by another process, or the disk is full.
    """
    bar = ProgressBar(progress)
    hooks: list[OnReport] = [bar.report, *([on_report] if on_report is not None else [])]
    training = TrainingSession(
        config=_with_module(config, decoder),
        target=_whole(images_seen),
        module=decoder,
        loss=loss,
        runtime=RuntimeWithHooks(runtime or SingleProcess(default_device()), hooks, on_preview, should_stop),
        bar=bar,
        options={
            "intervals": intervals,
            "cache": cache,
            "autocast": autocast,
            "compile": compile,
            "scratch": Path(scratch).expanduser() if scratch is not None else None,
            "warm_start": Checkpoint.latest(Path(warm_start).expanduser()).directory if warm_start else None,
        },
    )
    dataset = images if isinstance(images, Dataset) else None
    source = dataset.images() if dataset is not None else image_source(images)
    if run is None:
        return training.in_memory(source, dataset)
    directory = Path(run).expanduser()
    with file_lock(directory, CheckpointError) if training.runtime.rank == 0 else contextlib.nullcontext():
        return training.in_run(directory, source, dataset)


def _with_module(config: TrainConfig | None, module: torch.nn.Module | None) -> TrainConfig | None:
    """`config` with the decoder kind "module" if the decoder is one."""
    if module is None:
        return config
    config = config or TrainConfig()
    if config.decoder not in (DecoderConfig(), DecoderConfig(kind=MODULE)):
        raise ConfigError(f"`decoder` (={type(module).__name__}) is a module: leave out the settings of config.decoder")
    return dataclasses.replace(config, decoder=DecoderConfig(kind=MODULE))


def _whole(images_seen: float | None) -> int | None:
    if images_seen is None:
        return None
    number = isinstance(images_seen, int | float | np.number) and not isinstance(images_seen, bool)
    if not number or not math.isfinite(images_seen) or images_seen < 1 or images_seen != int(images_seen):
        raise ConfigError(
            f"`images_seen` (={images_seen!r}) must be a whole number from 1 on, or None to let the number of images "
            "decide"
        )
    return int(images_seen)
