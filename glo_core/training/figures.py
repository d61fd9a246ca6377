"""The figures at the end of a phase: PSNR of GLO and of PCA over the training images, in `metrics/` of the run."""

from pathlib import Path

from glo_core.checkpoint.attempt import Attempt, seen_by_all
from glo_core.checkpoint.layout import metrics_path
from glo_core.common.records import read_record, write_record
from glo_core.common.runtime import Metrics, Runtime
from glo_core.evaluation.metrics import training_psnr
from glo_core.evaluation.pca_baseline import PcaBaseline
from glo_core.evaluation.record import MetricsRecord
from glo_core.training.epoch_batches import EpochBatches
from glo_core.training.learner import Learner


def final_figures(
    learner: Learner, epochs: EpochBatches, images_seen: int, attempt: Attempt | None, *, trained: bool
) -> Metrics:
    """`psnr` and `pca_psnr` over the training images: reported, and kept with the principal components.

    Every rank calls this.

    Args:
        learner: at the phase's end.
        epochs: the images of this rank.
        images_seen: where training stands.
        attempt: of this group of ranks on its run; None keeps nothing.
        trained: whether a step was taken since the start. If not, what an interrupted command has kept holds.

    Raises:
        StopRequestedError: on every rank, if somebody asked to stop.
    """
    runtime = learner.runtime
    path = metrics_path(attempt.run, images_seen) if attempt is not None else None
    if path is not None and not trained and _kept(path, runtime):
        record = read_record(path, MetricsRecord)
        return {"psnr": record.psnr, "pca_psnr": record.pca_psnr}
    pca = _pca(learner, epochs, images_seen, path, trained)
    if attempt is not None and path is not None and runtime.rank == 0:
        attempt.require_current()
        pca.save(path.with_suffix(".safetensors"))
    metrics = training_psnr(learner.ema.decoder, learner.table, pca, epochs.images, runtime, images_seen=images_seen)
    if runtime.rank == 0:
        runtime.report(images_seen, metrics)
        if attempt is not None and path is not None:
            attempt.require_current()
            write_record(path, MetricsRecord(images_seen=images_seen, **metrics))
    return metrics


def _pca(learner: Learner, epochs: EpochBatches, images_seen: int, path: Path | None, trained: bool) -> PcaBaseline:
    """The principal components: those that an interrupted command has kept, or of one pass after the other."""
    runtime = learner.runtime
    if path is not None and not trained and _kept(path.with_suffix(".safetensors"), runtime):
        return PcaBaseline.load(path.with_suffix(".safetensors")).to(runtime.device)
    return PcaBaseline.fit(epochs.images, learner.config.code.dim, runtime, images_seen=images_seen)


def _kept(path: Path, runtime: Runtime) -> bool:
    """Whether `path` is there: all ranks take the same branch, and can read it."""
    return seen_by_all(runtime, path)
