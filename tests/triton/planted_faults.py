"""Faults planted into the Hopper kernels, which the emulator has to find.

python -m tests.triton.planted_faults
"""

import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from tests.triton import emulator
from tests.triton.interpreted_hopper import LONG, cotangents, many_tiles_each, operands, problem, results
from tests.triton.keeping import keeping
from vicinal import Axis

with emulator.stand_ins():
    from vicinal.triton import (
        hopper_copies,
        hopper_forward,
        hopper_kept,
        hopper_key_gradient,
        hopper_key_products,
        hopper_query_gradient,
        hopper_query_sum,
        hopper_schedule,
    )

# The same where rows of one tile fill shared memory, and where both halves of a box have stages of their own.
WIDE = replace(LONG, dim=128, value_dim=128)
WIDEST = replace(LONG, dim=256, value_dim=256, heads=1)
# The same with slopes kept, which takes turns.
KEPT = problem(Axis(640, 500), heads=3, dim=96)
FAULTS = (
    # A stage of values is given back while the product that reads it is under way.
    (
        hopper_forward,
        """        acc = hp.landed(adding, 0)
        # Together: a barrier of threads comes before each, and before the first wait after them.
        mbarrier.arrive(keys.empty.index(stage), count=1)
        mbarrier.arrive(values.empty.index(before), count=1)""",
        """        mbarrier.arrive(keys.empty.index(stage), count=1)
        mbarrier.arrive(values.empty.index(before), count=1)
        acc = hp.landed(adding, 0)""",
        r"race on values.buffers\[\d\]: a write at hopper_copies.py:\d+ fill.* unordered with .* add",
    ),
    (
        hopper_query_gradient,
        """            found = hp.landed(pulling + adding, 0)
            pulled, grad = found[0], found[1:]
            mbarrier.arrive(keys.empty.index(before), count=1, pred=i > begin)""",
        """            mbarrier.arrive(keys.empty.index(before), count=1, pred=i > begin)
            found = hp.landed(pulling + adding, 0)
            pulled, grad = found[0], found[1:]""",
        r"race on keys.buffers\[\d\]: a write at hopper_copies.py:\d+ fill.* unordered with .* add",
    ),
    (
        hopper_key_gradient,
        "        else:\n            mbarrier.arrive(queries.empty.index(before), count=1, pred=i > opening)",
        "        else:\n            mbarrier.arrive(queries.empty.index(stage), count=1, pred=i > opening)",
        "race on queries.buffers|deadlock",
    ),
    # A product is used while it is under way.
    (
        hopper_forward,
        "hp.landed(flying, len(adding))",
        "hp.landed(flying, len(adding) + 1)",
        "takes the product of .* multiply .* may be under way",
    ),
    (
        hopper_key_products,
        "found = hp.landed(pulling + adding_key + adding_value, 0)",
        "found = hp.landed(pulling + adding_key + adding_value, 1)",
        "takes the product of .* multiply .* may be under way",
    ),
    # Counts of barriers.
    (
        hopper_forward,
        "keys = hc.ring(key, SPEC.stages, SPEC.warpgroups)",
        "keys = hc.ring(key, SPEC.stages, SPEC.warpgroups - 1)",
        "race on keys.buffers|arrives 1 times at keys.empty|of keys.(full|empty)",
    ),
    (
        hopper_forward,
        "keys = hc.ring(key, SPEC.stages, SPEC.warpgroups)",
        "keys = hc.ring(key, SPEC.stages, SPEC.warpgroups + 1)",
        r"deadlock:(.|\n)*_copy\) waits for phase 0 of keys.empty\[\d\], which has 2 of 3 arrivals",
    ),
    (
        hopper_query_gradient,
        "keys = hc.ring(key, SPEC.stages, SPEC.warpgroups, 2)",
        "keys = hc.ring(key, SPEC.stages, SPEC.warpgroups - 1, 2)",
        "race on keys.buffers|arrives 1 times at keys.empty|of keys.(full|empty)",
    ),
    (
        hopper_key_gradient,
        "queries = hc.ring(query, SPEC.stages, 2, 3)",
        "queries = hc.ring(query, SPEC.stages, 2, 2)",
        "race on (notes|borders|queries)|arrives 1 times at queries.full",
    ),
    # Halves of a box with stages of their own.
    (
        hopper_query_gradient,
        "            grad = hp.landed(adding, 1)\n            mbarrier.arrive(keys.empty.index(before)",
        "            mbarrier.arrive(keys.empty.index(before)",
        "race on keys.buffers|under way",
        WIDEST,
    ),
    (
        hopper_query_gradient,
        "            mbarrier.arrive(values.empty.index(place), count=1)\n        else:\n",
        "            pass\n        else:\n",
        r"deadlock:(.|\n)*values.empty",
        WIDEST,
    ),
    (
        hopper_key_products,
        "        mbarrier.wait(grad_outs.full.index(place), (i // SPEC.value_stages) & 1)\n        pulling",
        "        pulling",
        "race on grad_outs|reads grad_outs.*nothing|grad_outs.full",
        WIDEST,
    ),
    (
        hopper_key_gradient,
        "            mbarrier.arrive(grad_outs.empty.index(i % SPEC.value_stages), count=1)\n",
        "            pass\n",
        r"deadlock:(.|\n)*grad_outs.empty",
        WIDEST,
    ),
    # Waits for too little, too much, and the wrong phase.
    (
        hopper_copies,
        "mbarrier.wait(values.empty.index(stage), i // SPEC.value_stages & 1 ^ 1)",
        "",
        "race on values.buffers|values.full",
    ),
    (
        hopper_copies,
        "mbarrier.wait(keys.empty.index(stage), i // SPEC.stages & 1 ^ 1)",
        "mbarrier.wait(keys.empty.index(stage), i // SPEC.stages & 1)",
        r"deadlock:(.|\n)*waits for phase 0 of keys.empty\[0\]",
    ),
    (
        hopper_forward,
        "mbarrier.wait(values.full.index(last), (end - 1) // SPEC.value_stages & 1)",
        "",
        "race on values.buffers.* _attend|values.full",
    ),
    (
        hopper_query_gradient,
        "    mbarrier.wait(grad_outs.full.index(slot), filled)\n    grad_out =",
        "    grad_out =",
        "race on grad_outs|reads grad_outs.*nothing",
    ),
    # Bytes.
    (
        hopper_copies,
        "block_type.nbytes)\n    tma",
        "block_type.nbytes - 16)\n    tma",
        "not all of them expected",
    ),
    (hopper_copies, "block_type.nbytes)\n    tma", "block_type.nbytes + 16)\n    tma", "lacks 16 bytes"),
    # What leaves shared memory.
    (
        hopper_forward,
        "        count += 1\n    tma.store_wait(0)\n",
        "        count += 1\n",
        "ends without having waited for its stores",
    ),
    # Queries of the next tiles, and outputs in their place.
    (
        hopper_forward,
        "        tma.store_wait(0)\n        before",
        "        before",
        "race on queries.buffers.* unordered with .* put",
    ),
    (hopper_forward, "(count + 1) % SPEC.depth", "count % SPEC.depth", "race on queries.buffers|deadlock"),
    # Rows of the next tiles, and gradients in their place.
    (
        hopper_query_gradient,
        "            fence_async_shared()\n            mbarrier.arrive(queries.empty",
        "            mbarrier.arrive(queries.empty",
        "no fence between hopper_parts.py:.* factors.* and the proxy of .* fill",
    ),
    (
        hopper_query_gradient,
        "            mbarrier.arrive(queries.empty.index(warpgroup), count=1)\n        row = ",
        "        row = ",
        r"deadlock:(.|\n)*queries.empty",
    ),
    (
        hopper_query_gradient,
        "            tma.store_wait(0)\n            before",
        "            before",
        "race on grad_outs.buffers.* unordered with .* put",
    ),
    (
        hopper_key_gradient,
        "        tma.store_wait(0)\n        before",
        "        before",
        "race on (keys|values).buffers.* unordered with .* put",
    ),
    (
        hopper_key_gradient,
        "    if SPEC.depth == 1:\n        tma.store_wait(0)\n",
        "    if SPEC.depth == 1:\n",
        "race on (keys|values).buffers.* unordered with .* put",
        WIDE,
    ),
    (
        hopper_copies,
        "    mbarrier.wait(into.empty.index(slot), turn // depth & 1 ^ 1)\n",
        "",
        "race on queries.buffers",
    ),
    # Numbers of tiles.
    (
        hopper_schedule,
        "hc.barriers(2, readers)",
        "hc.barriers(2, readers - 1)",
        "race on tickets.buffers|tickets.(full|empty)",
    ),
    (hopper_copies, "    fence_async_shared()\n", "\n", "no fence between hopper_parts.py:.* store"),
    # A barrier that lives on where the compiler puts something else.
    (
        hopper_forward,
        "hs.turns() if SPEC.turns else ()",
        "hs.turns()",
        "no partition uses",
    ),
    # Slopes that are kept.
    (
        hopper_query_sum,
        "            sums = hp.landed(adding, each * len(cuts))\n",
        "            sums = adding\n",
        r"race on (keys.buffers|kept)\[\d+\]: a write at .* (fill|fetch).* unordered with .* add",
        KEPT,
    ),
    (
        hopper_query_sum,
        "        sums = hp.landed(sums, 0)\n",
        "",
        "takes the product of .* add .* may be under way",
        KEPT,
    ),
    (
        hopper_query_sum,
        "            mbarrier.wait(keys.full.index(stage), i // SPEC.stages & 1)\n",
        "",
        "race on (keys.buffers|kept)|reads (keys.buffers|kept).*nothing",
        KEPT,
    ),
    (
        hopper_query_sum,
        "        mbarrier.arrive(keys.empty.index((base - 1) % SPEC.stages), count=1)\n",
        "",
        r"deadlock:(.|\n)*_copy\) waits for phase \d of keys.empty",
        KEPT,
    ),
    (
        hopper_query_sum,
        "            tma.store_wait(0)\n            gl",
        "            gl",
        r"race on room\[\d\]: a write at .* put.* unordered with .* put",
        KEPT,
    ),
    (
        hopper_query_sum,
        "keys.full.index(stage), stage * together + row, place)",
        "keys.full.index(stage), row, place)",
        r"race on kept\[\d\]",
        KEPT,
    ),
    (hopper_kept, "block_type.nbytes)", "block_type.nbytes - 16)", "not all of them expected", KEPT),
    (hopper_kept, "% slots[2]\n", "% slots[2] // 2\n", "leave .* elements that hold other results", KEPT),
)


def check_fault(module, right, wrong, message, case=LONG):
    """A planted fault is found, in any schedule."""
    path = Path(module.__file__)
    source = path.read_text()
    assert source.count(right) == 1, right

    def put(text):
        with emulator.stand_ins():
            exec(compile(text, path, "exec"), module.__dict__)

    put(source.replace(right, wrong))
    try:
        with many_tiles_each(), keeping(1) if case is KEPT else nullcontext():
            results(case, operands(case), 0.2, cotangents(case))
        said = "nothing"
    except emulator.Fault as fault:
        said = str(fault)
    finally:
        put(source)
    assert re.search(message, said), f"{wrong}: {said}"


if __name__ == "__main__":
    for found in FAULTS:
        check_fault(*found)
