"""How a step is computed on this device: in bfloat16 or not, compiled or plain with a line that says why."""

import logging

import torch

from glo_core.common.errors import one_line
from glo_core.common.runtime import Runtime
from glo_core.training.autocast import choose_autocast, set_float32_products
from glo_core.training.config import Autocast, Compile
from glo_core.training.learner import Learner

log = logging.getLogger("glo.train")


def prepare_step(learner: Learner, rows: int, autocast: Autocast, compiled: Compile, earlier: str | None) -> None:
    """Choose how `learner` computes a step; every rank calls this, and all ranks choose the same.

    Args:
        learner: with the state from which training starts or continues.
        rows: of this rank in a step.
        autocast: as the user asks for it.
        compiled: as the user asks for it.
        earlier: "off" or "bfloat16" as the phase began, if it continues.

    Raises:
        ConfigError: if bfloat16 is asked for in a training in float64.
    """
    runtime = learner.runtime

    def trial(reduced: bool) -> None:
        learner.autocast = reduced
        learner.trial(rows)

    learner.autocast = choose_autocast(autocast, learner.config.precision, runtime, trial, earlier)
    # Who asks for float32 alone gets it in full.
    set_float32_products(autocast != "off" and learner.config.precision == "float32")
    learner.compiled = compile_step(learner, rows, compiled, runtime)


def compile_step(
    learner: Learner, rows: int, requested: Compile, runtime: Runtime, *, backend: str = "inductor"
) -> bool:
    """Compile forward pass, loss, backward pass and the update of the codes, if `requested`; whether it was done.

    Every rank calls this. A trial is taken first: whatever fails in it, training goes on without compilation, and a
    line of the log says why. Groups of batch statistics that span ranks are not compiled.

    Args:
        learner: with its choice of autocast.
        rows: of this rank in a step.
        requested: by the user.
        runtime: this rank and its connection to the others.
        backend: of `torch.compile`.
    """
    if requested == "off" or (requested == "auto" and runtime.device.type != "cuda"):
        return False
    reason = None
    if learner.groups.shared:
        reason = "batch statistics are summed over ranks"
    else:
        plain = learner.forward, learner.update
        try:
            learner.forward = torch.compile(learner.forward, dynamic=False, backend=backend)
            learner.update = torch.compile(learner.update, dynamic=False, backend=backend)
            for _ in range(2):
                learner.trial(rows)
        except Exception as error:  # The compiler raises anything, by the device, its driver and the decoder.
            reason = one_line(error)[:300]
            learner.forward, learner.update = plain
    # All ranks or none: what is compiled rounds in another way.
    done = all(runtime.all_gather(reason is None))
    if not done:
        log.warning("training goes on without compilation: %s", reason or "another rank could not compile")
        if reason is None:
            learner.forward, learner.update = plain
    return done
