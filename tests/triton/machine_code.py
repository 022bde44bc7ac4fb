"""What compiled Hopper kernels must not do: touch registers of a product in flight, arrive too early.

Both read code in the order that it stands in, of which loops and the products in them are contiguous parts.
"""

import re

INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+ )?(.*?) ;", re.MULTILINE)
JUMP = re.compile(r"BRA (?:U?P\w+, |!U?P\w+, )?(0x[0-9a-f]+)")
PRODUCT = re.compile(r"[HQ]GMMA\.64x(\d+)x\d+\S* R(\d+), (\S+), ")
WAIT = re.compile(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x([0-9a-f]+)")
# What these name first they do not write.
READERS = ("ST", "RED", "UTMA", "SYNCS", "BAR", "ISETP", "FSETP", "R2UR")
USE = re.compile(
    r"(@!?%p\d+ )?(ld\.shared|st\.shared|ldmatrix|stmatrix|wgmma\.wait|wgmma\.mma|cp\.async\.bulk\.wait)"
)
BARRIER = re.compile(r"(@!?%p\d+ )?(bar\.sync|bar\.warp\.sync|barrier\.sync)")


def touched(code):
    """Instructions of SASS that use sums of a product in flight, or write registers that it reads."""
    flying, group, found = [], [], []
    for at, text in INSTRUCTION.findall(code):
        if product := PRODUCT.match(text):
            columns, first = int(product[1]), int(product[2])
            left = int(product[3][1:]) if re.match(r"R\d", product[3]) else None
            operand = set() if left is None else set(range(left, left + 4))
            group.append((set(range(first, first + columns // 2)), operand))
            if "gsb0" in text:
                flying.append(group)
                group = []
        elif wait := WAIT.match(text):
            left = int(wait[1], 16)
            flying = flying[len(flying) - left :] if left else []
        else:
            used, written = _registers(text)
            for sums, operand in (one for many in (*flying, group) for one in many):
                if used & sums or written & operand:
                    found.append(f"{at}: {text}")
    return found


def _registers(text):
    """Registers that an instruction names, and those of them that it writes."""
    operation, _, operands = text.partition(" ")
    used = {int(number) for number in re.findall(r"\bR(\d+)", operands)}
    first = re.match(r"R(\d+)", operands)
    if first is None or operation.startswith(READERS):
        return used, set()
    width = (
        4
        if ".128" in operation or ".M88.4" in operation
        else 2
        if ".64" in operation or "WIDE" in operation or operation == "CS2R"
        else 1
    )
    written = set(range(int(first[1]), int(first[1]) + width))
    return used | written, written


def early_arrivals(source):
    """Arrivals in PTX, of one thread, that others may not have used shared memory before."""
    last, found = "bar", []
    for line in map(str.strip, source.splitlines()):
        if BARRIER.match(line):
            last = "bar"
        elif USE.match(line):
            last = line
        elif "mbarrier.arrive.shared" in line and last != "bar":
            found.append(f"{line} after {last}")
    return found


def overtaken(source):
    """Arrivals in PTX that follow loads of rows at once: the copy they allow may come before the loads.

    A barrier of threads does not wait for loads, and copies do not queue behind them as stores do.
    """
    loading, found = "", []
    for line in map(str.strip, source.splitlines()):
        if line.startswith("ldmatrix"):
            loading = line
        elif line.startswith(("fence.proxy.async", "wgmma.wait", "mbarrier.try_wait")):
            loading = ""
        elif "mbarrier.arrive.shared" in line and loading:
            found.append(f"{line} after {loading}")
    return found


def overwritten(code):
    """Instructions of SASS in a loop that write rows which its products still read in the next round.

    Rows that are loaded before a loop are the left factors of its products from registers (ptxas of CUDA 12.8
    gave some of them to other values).
    """
    # What follows the end waits for barriers, out of line.
    lines = [(int(at, 16), text) for at, text in INSTRUCTION.findall(code.rpartition("EXIT")[0])]
    found = []
    for last, (at, text) in enumerate(lines):
        jump = JUMP.match(text)
        if jump is None or int(jump[1], 16) >= at:
            continue
        first = next(place for place, line in enumerate(lines) if line[0] >= int(jump[1], 16))
        written, held = set(), set()
        for _, one in lines[first:last]:
            product = PRODUCT.match(one)
            if product and re.match(r"R\d", product[3]):
                left = int(product[3][1:])
                held |= set(range(left, left + 4)) - written
            written |= _registers(one)[1]
        for register in held & written:
            before = next((one for _, one in lines[first - 1 :: -1] if register in _registers(one)[1]), "")
            if before.startswith("LDSM"):
                found.append(f"{at:04x}: R{register} of {before}")
    return found
