"""What kernels use that compiled within what GPUs have, so that the same source need not be compiled again.

python -m tests.triton.recorded

compiles every portable kernel for every GPU but sm_90, and writes the record.

A kernel is known by a digest of the version of Triton, of what its launch asks for, and of its source as
Triton's intermediate language, without places in files, which comments change, and without the GPU's name:
it is the same for all NVIDIA GPUs.
"""

import csv
import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import triton

RECORD = Path(__file__).with_name("compiled.csv")
MEASURES = ("registers", "spilled", "shared", "matrix")
COLUMNS = ("target", "name", "digest", *MEASURES)


class Recorded(Exception):
    """A kernel that need not be compiled; the argument is its digest."""


class Sources:
    """A hook of Triton's that reads what kernels are compiled from, and stops where that is `known`.

    `options` are those of the launch whose kernel comes next. Sources are found by Triton's own hashes, which
    hold paths: a kernel that was compiled before does not come again.
    """

    def __init__(self, known):
        self.known, self.options, self.found = known, {}, {}

    def __call__(self, backend, stages, options, language, capability):
        first, lower = next(iter(stages.items()))

        def read(module, metadata):
            self.found[metadata["hash"]] = re.sub(r'"cuda:\d+"', "", module.str_nodebug())
            digest = self.digest(metadata["hash"])
            if digest in self.known:
                raise Recorded(digest)
            return lower(module, metadata)

        stages[first] = read

    def digest(self, key):
        """Of the launch whose kernel has this hash."""
        text = f"{triton.__version__} {sorted(self.options.items())} {self.found[key]}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def rows():
    """Kernels in the record, by `COLUMNS`."""
    with RECORD.open(newline="") as file:
        return [row | {key: int(row[key]) for key in MEASURES} for row in csv.DictReader(file)]


def main():
    from tests.triton.test_offline import ALL, SHARED, checked

    jobs = list(product([target for target in SHARED if target != ALL], ("short", "float32")))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda job: checked(*job, flags=("--digests",)), jobs))
    kernels = [kernel | {"target": job[0]} for job, some in zip(jobs, found, strict=True) for kernel in some]
    kernels.sort(key=lambda kernel: (kernel["target"], kernel["name"]))
    with RECORD.open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(kernels)


if __name__ == "__main__":
    main()
