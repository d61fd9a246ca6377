"""What a job says about its progress."""

import logging
from collections.abc import Iterator

import pytest
from tqdm import tqdm

from pipelines.common.logs import configure


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    logger = logging.getLogger("glo")
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers, logger.level = handlers, level


def test_each_message_is_one_line_on_stderr_that_begins_with_its_stage(capsys: pytest.CaptureFixture[str]) -> None:
    configure("pipeline")
    configure("pipeline")
    logging.getLogger("glo.train").info("%d images", 7)
    logging.getLogger("glo.train").debug("not shown")
    logging.getLogger("glo").warning("all stages")
    logging.getLogger("elsewhere").info("not shown")
    shown = capsys.readouterr()
    assert shown.err == "train: 7 images\npipeline: all stages\n"
    assert shown.out == ""


def test_a_message_stands_above_the_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    configure("train")
    with tqdm(total=3, desc="bar") as bar:
        bar.update(1)
        logging.getLogger("glo.train").info("stopping")
    lines = capsys.readouterr().err.split("\r")
    (message,) = [line for line in lines if "stopping" in line]
    assert message.startswith("train: stopping\n")
