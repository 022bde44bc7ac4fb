"""What kernels use that compiled within what GPUs have, so that the same source need not be compiled again.

python -m tests.triton.recorded

compiles every portable kernel for every GPU but sm_90, and writes the record.

A kernel is known by a digest of the version of Triton, of its options, GPU among them, and of its source as
Triton's intermediate language, without places in files: comments and moved lines do not change it.
"""

import csv
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import triton

RECORD = Path(__file__).with_name("compiled.csv")
MEASURES = ("registers", "spilled", "shared", "matrix")
COLUMNS = ("target", "name", "digest", *MEASURES)


class Recorded(Exception):
    """A kernel that need not be compiled; the argument is its digest."""


class Source:
    """A hook of Triton's that reads what kernels are compiled from, and stops where that is `known`.

    `digests` are found by Triton's own hashes, which hold paths.
    """

    def __init__(self, known):
        self.known, self.digests = known, {}

    def __call__(self, backend, stages, options, language, capability):
        first, lower = next(iter(stages.items()))

        def read(module, metadata):
            # Libraries are Triton's own, wherever they are installed.
            chosen = sorted((key, x) for key, x in vars(options).items() if key != "extern_libs")
            text = f"{triton.__version__} {chosen} {module.str_nodebug()}"
            digest = hashlib.sha256(text.encode()).hexdigest()[:16]
            self.digests[metadata["hash"]] = digest
            if digest in self.known:
                raise Recorded(digest)
            return lower(module, metadata)

        stages[first] = read


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
