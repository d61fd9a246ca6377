"""Images damaged at random: each is decoded or rejected with a reason, in little memory."""

import json
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
MUTATIONS, LIMIT_MIB = 2000, 1024
SCRIPT = f"""
import json, warnings
from pathlib import Path
from benchmarks.preprocess_fuzz import mutate, peak_mebibytes
from glo_core.dataset_format.config import ResolvedDatasetConfig
from glo_core.dataset_format.image_decoding import SUFFIXES, decode
from glo_core.dataset_format.rejection import RejectedImageError
warnings.simplefilter("ignore")
files = [path.read_bytes() for path in sorted(Path("tests/faults").iterdir()) if path.suffix in SUFFIXES]
outcomes = []
for seed in range({MUTATIONS}):
    for truncated in (False, True):
        try:
            decode(mutate(files, seed), ResolvedDatasetConfig(resolution=16, channels=3, allow_truncated=truncated))
            outcomes.append("image")
        except RejectedImageError as error:
            outcomes.append(error.reason)
print(json.dumps([outcomes, peak_mebibytes()]))
"""


def test_every_damaged_image_has_an_outcome_in_bounded_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=REPOSITORY, capture_output=True, text=True, timeout=250, check=True
    )
    outcomes, mebibytes = json.loads(done.stdout)
    assert len(outcomes) == 2 * MUTATIONS
    assert {"image", "broken", "truncated", "unknown format"} <= set(outcomes)
    assert mebibytes < LIMIT_MIB
