"""The portable kernels with other releases of Triton, each in a folder of its own; needs no GPU.

python -m tests.triton.versions [--folder FOLDER] [--sample] [--target cuda:90] [3.4.0 newest ...]

Without versions: the oldest that the package asks for, one between, and the newest that pip finds. The newest
compiles every kernel, unless a sample is asked for; others compile a sample. Without targets, for all GPUs.
"""

import argparse
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from tests.triton.test_offline import SAMPLE, SHARED, checked
from tests.triton.test_portable import run

BETWEEN = ("3.4.0", "3.5.1")
# Numerically, in the interpreter: an odd window, every option at once, ragged dilation groups.
INTERPRETED = ("odd_2d", "everything", "dilation")
HOPPER = """
import sys
from vicinal.torch.backends import hopper
from vicinal.triton import support
assert support.installed() == tuple(map(int, sys.argv[1].split(".")[:2])), support.installed()
reason = hopper._missing() or ""
assert sys.argv[1].startswith(hopper.VERSIONS) or sys.argv[1] in reason, reason
"""


def newest():
    command = [sys.executable, "-m", "pip", "index", "versions", "triton"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.match(r"triton \(([\d.]+)\)", found)[1]


def install(folder, version):
    """Without what it depends on: Triton needs nothing at run time that PyTorch's environment lacks."""
    if not (folder / version).exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
        subprocess.run([*command, folder / version, f"triton=={version}"], check=True)


def try_version(folder, version, paths, every, targets):
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder / version), *paths])
    subprocess.run([sys.executable, "-c", HOPPER, version], check=True)
    # Register allocation is another in every release; budgets of spills are about one.
    kinds, names = (("short", "float32"), ()) if every else (("short",), SAMPLE)
    # Triton 3.4 links for AMD with a ROCm installation's linker.
    targets = [target for target in targets if version[:3] != "3.4" or not target.startswith("hip")]
    jobs = list(product(targets, kinds))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda job: len(checked(*job, names, spills=False)), jobs))
    counts = {" ".join(job): count for job, count in zip(jobs, found, strict=True)}
    run("launching")
    run("interpreted", *INTERPRETED, TRITON_INTERPRET="1")
    print(f"Triton {version}: {counts} kernels compiled; {', '.join(INTERPRETED)} interpreted", flush=True)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("versions", nargs="*")
    options.add_argument("--folder", type=Path, default=Path(".venv-tritons"))
    options.add_argument("--sample", action="store_true")
    options.add_argument("--target", action="append", choices=SHARED)
    wanted = options.parse_args()
    folder, paths = wanted.folder.resolve(), [os.environ.get("PYTHONPATH", "src")]
    last = newest()
    for asked in wanted.versions or (*BETWEEN, "newest"):
        version = last if asked == "newest" else asked
        install(folder, version)
        every = version == last and not wanted.sample
        try_version(folder, version, paths, every, wanted.target or SHARED)


if __name__ == "__main__":
    main()
