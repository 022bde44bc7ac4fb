"""What `machine_code` says of a few lines."""

import pytest

from tests.triton.machine_code import early_arrivals, overtaken, overwritten, touched

LINES = (
    "HGMMA.64x64x16.F32.BF16 R88, R148, gdesc[UR16].tnspB, R88",
    "HGMMA.64x64x16.F32.BF16 R88, R144, gdesc[UR20].tnspB, R88, gsb0",
    "FADD R4, R5, R6",
    "WARPGROUP.DEPBAR.LE gsb0, 0x0",
    "FMUL R88, R88, R3",
)


def code(*lines):
    return "\n".join(f"        /*{16 * at:04x}*/    {line} ;" for at, line in enumerate(lines))


def test_a_product_that_is_waited_for_may_be_touched():
    assert not touched(code(*LINES))


@pytest.mark.parametrize(
    "line",
    [
        "FMUL R119, R4, R3",
        "@P0 FADD R4, R88, R3",
        "MOV R147, R4",
        "LDS.128 R148, [R4+0x10]",
        "IMAD.WIDE R150, R4, R5, R6",
        "STS.64 [R4], R88",
    ],
)
def test_registers_of_a_product_in_flight_may_not(line):
    assert len(touched(code(*LINES[:2], line, *LINES[3:]))) >= 1
    assert not touched(code(*LINES[:4], line))


def test_operands_may_be_read_and_other_registers_written():
    assert not touched(code(*LINES[:2], "STS.128 [R4], R148", "MOV R120, R121", *LINES[3:]))


def test_one_product_may_be_left_in_flight():
    other = "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR16], RZ, !UPT, gsb0"
    wait = "WARPGROUP.DEPBAR.LE gsb0, 0x1"
    assert not touched(code(other, *LINES[:2], wait, "FADD R24, R25, R26"))
    assert touched(code(other, *LINES[:2], wait, "FADD R88, R25, R26"))


def test_threads_meet_before_one_of_them_arrives():
    arrive = "@%p1 mbarrier.arrive.shared::cta.b64 _, [%r1];"
    for use in (
        "ld.shared.b32 %r2, [%r3];",
        "wgmma.wait_group.sync.aligned 0;",
        "@%p2 st.shared.b32 [%r3], %r2;",
    ):
        assert early_arrivals(f"{use}\n{arrive}")
        assert not early_arrivals(f"{use}\nbar.sync 0, 128;\n{arrive}")


def test_copies_may_not_overtake_loads():
    load, arrive = (
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1}, [%r2];",
        "mbarrier.arrive.shared::cta.b64 _, [%r3];",
    )
    assert overtaken(f"{load}\nbar.sync 0, 128;\n@%p1 {arrive}")
    for between in ("fence.proxy.async.shared::cta;", "wgmma.wait_group.sync.aligned 0;"):
        assert not overtaken(f"{load}\n{between}\nbar.sync 0, 128;\n{arrive}")


def test_rows_are_kept_for_the_next_round():
    before = ("LDSM.16.M88.4 R4, [R2]", "CS2R R6, SRZ", "CS2R R8, SRZ", "CS2R R10, SRZ")
    body = (
        "HGMMA.64x64x16.F32.BF16 R24, R4, gdesc[UR16], RZ, !UPT",
        "HGMMA.64x32x16.F32.BF16 R64, R8, gdesc[UR16], R64",
    )
    kept = ("F2FP.BF16.F32.PACK_AB R8, R3, R2", "@P0 BRA 0x40", "EXIT")
    assert not overwritten(code(*before, *body, *kept))
    assert overwritten(code(*before, *body, "F2FP.BF16.F32.PACK_AB R5, R3, R2", *kept))
    # Loaded anew in each round.
    assert not overwritten(code(*before, "LDSM.16.M88.4 R4, [R2]", *body, "FADD R4, R3, R2", *kept))
