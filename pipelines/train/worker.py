"""What a worker runs, under Ray Train or beside the driver: `glo_core`'s `train_phase` on its own lanes."""

import importlib
import socket
from collections.abc import Callable
from typing import Protocol

import torch
from PIL import Image

from glo_core.checkpoint.attempt import FencedError
from glo_core.checkpoint.layout import committed_checkpoints
from glo_core.codes.pca_init import PcaInit
from glo_core.common.errors import UserError, one_line
from glo_core.common.failures import RankError, user_error_of
from glo_core.common.in_step import StopRequestedError
from glo_core.common.runtime import Metrics, Runtime, SingleProcess
from glo_core.data.dataset import Dataset
from glo_core.training.init_codes import PCA_FILE
from glo_core.training.loop import train_phase
from pipelines.train.arguments import WorkerArguments
from pipelines.train.mailbox import Complaints, Picture, Report
from pipelines.train.trainable import decoder_in_words, require_buildable

_ERRORS_OF_CODE = (TypeError, ValueError, AttributeError, LookupError, ImportError, AssertionError, NotImplementedError)
"""Of this project, or of the user's own decoder or loss: another attempt would raise them again"""


class Patience(Protocol):
    """A driver that begins the run while its worker prepares."""

    def buildable(self) -> None:
        """Be told that decoder and loss can be built."""
        ...

    def decoder_in_words(self, line: str) -> None:
        """Be told what the decoder is, and what a step of it costs."""
        ...

    def wait_for_go(self) -> None:
        """Return when the run may be written to."""
        ...


def train_rank(
    arguments: WorkerArguments, runtime: Runtime, complaints: Complaints, patience: Patience | None = None
) -> None:
    """Train one rank to the end of its phase.

    Args:
        arguments: what to train.
        runtime: this rank and its connection to the others.
        complaints: is told of an error.
        patience: of a driver that has not begun the run yet: the principal components are found before. None if the
            run may be written to now.

    Raises:
        Exception: whatever ended training; `complaints` has been told of it.
    """
    # Ray sets OMP_NUM_THREADS=1, which would leave most of a worker's CPUs idle.
    torch.set_num_threads(arguments.threads)
    try:
        dataset = Dataset.open(arguments.dataset).at(arguments.snapshot)
        pca_init = None
        if patience is not None:
            require_buildable(arguments.recipe, dataset)
            patience.buildable()
            import_ahead()
            patience.decoder_in_words(decoder_in_words(arguments.recipe, dataset))
            pca_init = _pca_init(arguments, dataset, runtime)
            patience.wait_for_go()
        train_phase(
            arguments.recipe,
            dataset.images(()),  # No shard yet: the loop selects its own.
            arguments.phase,
            runtime=runtime,
            run=arguments.run,
            intervals=arguments.intervals,
            scratch=arguments.scratch,
            cache=arguments.cache,
            autocast=arguments.autocast,
            compile=arguments.compile,
            warm_start=arguments.warm_start,
            pca_init=pca_init,
        )
    except StopRequestedError:
        return  # Before the first step
    except Exception as error:
        tell(error, complaints, runtime.rank)
        raise


def import_ahead() -> None:
    """Import what PyTorch would import at the first optimizer, which takes a second."""
    importlib.import_module("torch._dynamo")


def runtime_here(
    gpu: bool, put_report: Callable[[Report], None], put_picture: Callable[[Picture], None]
) -> SingleProcess:
    """The runtime of a single worker, on this machine's first GPU if it is to have one."""

    def on_report(images_seen: int, metrics: Metrics) -> None:
        put_report(Report.now(images_seen, metrics))

    def on_picture(images_seen: int, name: str, picture: Image.Image) -> None:
        put_picture(Picture.of(images_seen, name, picture))

    device = torch.device("cuda", 0) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    return SingleProcess(device, on_report, on_picture)


def _pca_init(arguments: WorkerArguments, dataset: Dataset, runtime: Runtime) -> PcaInit | None:
    """The principal components of all images, for a new run that starts there; None if training needs none.

    Raises:
        StopRequestedError: if somebody asked to stop.
    """
    code = arguments.recipe.code
    kept = (arguments.run / PCA_FILE).exists() or committed_checkpoints(arguments.run)
    return None if code.init != "pca" or kept else PcaInit.fit(dataset.images(), code.dim, runtime)


def tell(error: Exception, complaints: Complaints, rank: int) -> None:
    """Tell the driver whose `error` is, before the workers are started again.

    The user's would come again, and so would an error of the code: the next attempt then ends at once. After one of the
    machine the next attempt goes on from the last checkpoint. A lost process, the third class, tells nothing.
    """
    if isinstance(error, FencedError):
        return  # This group was given up, and another one trains.
    user_error = user_error_of(error)
    if user_error is None and isinstance(error, _ERRORS_OF_CODE):
        user_error = UserError(f"training failed: {one_line(error)}")
    if user_error is not None:
        complaints.put_failure(user_error)
    elif not isinstance(error, RankError):  # Its own rank tells.
        complaints.put_incident(f"rank {rank} on {socket.gethostname()} failed: {one_line(error)[:300]}")
