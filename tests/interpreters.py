"""Run the suite on every Python that is found here: `make test-all`.

Each gets an environment of its own, `.venv-3.x`. PyTorch comes along where pip has the pinned build without
CUDA; elsewhere what needs no framework runs.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path
from shutil import which

ROOT = Path(__file__).parents[1]
VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
TORCH = "torch==2.13.0" + ("+cpu" if platform.system() == "Linux" else "")
BIN = "Scripts" if platform.system() == "Windows" else "bin"


def found() -> dict[str, str]:
    """Interpreters of the supported versions, with pyenv or on the PATH."""
    beside = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    pythons = {}
    for version in VERSIONS:
        installed = [str(path) for path in sorted(beside.glob(f"{version}.*/bin/python"))]
        # A name on the PATH may be pyenv's stand-in for a version that is not chosen.
        candidates = [*reversed(installed), which(f"python{version}")]
        chosen = next((path for path in candidates if path and _version(path) == version), None)
        if chosen is not None:
            pythons[version] = chosen
    return pythons


def _version(python: str) -> str:
    program = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run([python, "-c", program], check=False, capture_output=True, text=True).stdout.strip()


def suite(python: str, version: str) -> bool:
    """Whether the suite passes on one interpreter."""
    folder = ROOT / f".venv-{version}"
    inside = folder / BIN / "python"
    pip = [str(inside), "-m", "pip", "install", "--quiet"]
    if not inside.exists():
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
    has_torch = subprocess.run([*pip, TORCH], check=False, capture_output=True).returncode == 0
    subprocess.run([*pip, "--editable", f"{ROOT}[test]"], check=True)
    print(f"Python {version}: {'with' if has_torch else 'without'} PyTorch", flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    jobs = os.environ.get("JOBS", "auto")
    tests = [str(inside), "-m", "pytest", "-n", jobs, *sys.argv[1:]]
    return subprocess.run(tests, cwd=ROOT, env=environment, check=False).returncode == 0


if __name__ == "__main__":
    passed = {version: suite(python, version) for version, python in found().items()}
    print("\n".join(f"Python {version}: {'passed' if ok else 'FAILED'}" for version, ok in passed.items()))
    sys.exit(not all(passed.values()))
