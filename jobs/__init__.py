"""Entry points: one command per stage."""

from pathlib import Path

# `python jobs/NAME.py` puts this folder before the standard library, where a file inspect.py would shadow a module that
# nearly everything imports. Jobs with such names lie one folder deeper: `python -m jobs.inspect` finds them there.
__path__.append(str(Path(__file__).parent / "module_only"))
