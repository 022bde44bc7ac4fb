"""`python -m vicinal.compat natten==0.14.6 script.py arguments...`, or `-m module` in place of a script."""

import runpy
import sys
from pathlib import Path

from vicinal.compat import LATEST, install

USAGE = "usage: python -m vicinal.compat REQUIREMENT... (SCRIPT | -m MODULE) [ARGUMENT...]"


def main() -> None:
    """Install the packages named first, then run what follows as `python` would."""
    given, wanted = sys.argv[1:], []
    while given and given[0].partition("==")[0].replace("-", "_") in LATEST:
        wanted.append(given.pop(0))
    if not wanted or not given or given == ["-m"]:
        stray = given[:1] if not wanted else []
        raise SystemExit("\n".join([USAGE, *(f"{x} is not one of {', '.join(LATEST)}" for x in stray)]))
    try:
        for requirement in wanted:
            install(requirement)
    except (ValueError, RuntimeError) as error:
        raise SystemExit(f"{USAGE}\n{error}") from None
    if given[0] == "-m":
        sys.argv = given[1:]
        sys.path.insert(0, "")
        runpy.run_module(given[1], run_name="__main__", alter_sys=True)
        return
    sys.argv = given
    sys.path.insert(0, str(Path(given[0]).resolve().parent))
    runpy.run_path(given[0], run_name="__main__")


main()
