"""The tables of measurements in the documentation say what the files of results hold."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PERFORMANCE = ROOT / "docs" / "performance.md"


def results(name):
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))


def tables(page):
    """Tables of a page by their header, as rows of cells."""
    found = {}
    for lines in re.findall(r"(?:^\|.*\|\n)+", page.read_text(encoding="utf-8"), re.MULTILINE):
        header, _, *rows = (
            [cell.strip() for cell in line.strip("|\n").split("|")] for line in lines.splitlines()
        )
        found[" | ".join(header)] = rows
    return found


def shows(text, value):
    """Assert that the number `text` is `value`, rounded to its decimals."""
    decimals = len(text.partition(".")[2])
    assert abs(float(text) - value) <= 0.5001 * 10.0**-decimals, f"{text} is not {value}"


CPU = {
    "1-D 256, window 7": "1d_256",
    "1-D 1024, window 7": "1d_1024",
    "1-D 8192, window 255, 8 heads of 64": "1d_8192",
    "2-D 32x32, window 7, 8 heads": "2d_32",
    "2-D 56x56, window 7, batch 4": "2d_56",
    "the same, dilation 8": "2d_56_dilated",
    "2-D 64x64, window 7": "2d_64",
    "2-D 64x64, window 16, stride 4, heads of 64": "2d_64_stride",
    "2-D 128x128, window 13, 8 heads of 64": "2d_128",
    "3-D 16x16x16, window 3": "3d_16",
    "3-D 16x32x32, window 5x7x7, heads of 64": "3d_16x32x32",
}
PEERS = {
    "dense attention, bool mask": "dense",
    "FlexAttention compiled, mask cached": "flex",
    "natten-mps 0.3.3 pure": "natten_mps",
    "NATTEN 0.17.5 as pip builds it": "natten",
}


@pytest.mark.parametrize(
    ("what", "mode", "dtype"),
    [
        ("forward, float32", "forward", "float32"),
        ("forward and backward, float32", "training", "float32"),
        ("forward, bfloat16", "forward", "bfloat16"),
    ],
)
def test_cpu(what, mode, dtype):
    header, rows = next(table for table in tables(PERFORMANCE).items() if table[0].startswith(f"{what} | "))
    measured = {
        x["case"]: x["peers"] for x in results("cpu.json")["rows"] if (x["mode"], x["dtype"]) == (mode, dtype)
    }
    names = [PEERS[title] for title in header.split(" | ")[2:]]
    assert [CPU[label] for label, *_ in rows] == [case for case in CPU.values() if case in measured]
    for label, ours, *cells in rows:
        peers = measured[CPU[label]]
        shows(ours, peers["ours"]["cpu"])
        for name, cell in zip(names, cells, strict=True):
            found = re.fullmatch(r"([\d.]+)(?: \((\d+)\))?", cell)
            assert (found is None) == ("missing" in peers[name]), f"{label}: {cell}"
            if found is not None:
                shows(found[1], peers[name]["ratio"])
                assert int(found[2] or 10) == peers[name]["rounds"], f"{label}: {cell}"


HOPPER = {
    "1-D 32768, window 2048": "a1",
    "2-D 256x256, window 80": "b1",
    "3-D 30x48x80, window 18x24x24": "c1",
    "the same, stride 256": "a256",
    "the same, stride 16": "b16",
    "the same, stride 16x8x8": "c16",
}
TRITON = {
    "56x56, window 7, batch 64, 4 heads of 32": "plane_k7",
    "the same, dilation 8": "plane_k7_dilation8",
    "14x14, window 7, batch 64, 16 heads of 32": "tiny_k7",
    "64x64, window 7, batch 8, 8 heads of 64": "plane_k7_dim64",
    "32x32x32, window 3, 4 heads of 32": "cube_k3",
    "1024x1024, window 9, 4 heads of 32": "megapixel_k9",
}
# Names of the first column and of the others, of the file's numbers.
TABLES = {
    "hopper_h200.json": (
        "`hopper` on an H200 | forward, ms | ratio | sustained | backward, ms | ratio | sustained",
        HOPPER,
        tuple(part + of for part in ("forward", "backward") for of in ("", "_ratio", "_sustained_ratio")),
    ),
    "triton_h200.json": (
        "`triton`, bfloat16 | forward, us | memory | dense, us | backward, us | memory | dense, us",
        TRITON,
        ("forward", "forward_memory", "dense_forward", "backward", "backward_memory", "dense_backward"),
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_gpu(name):
    header, labels, columns = TABLES[name]
    measured = {row["name"]: row for row in results(name)["rows"]}
    rows = tables(PERFORMANCE)[header]
    assert sorted(labels[label] for label, *_ in rows) == sorted(labels.values())
    for label, *cells in rows:
        for column, cell in zip(columns, cells, strict=True):
            value = measured[labels[label]][column]
            assert (value is None) == (cell == ""), f"{label}: {cell}"
            if value is not None:
                shows(cell, value)


@pytest.mark.parametrize("part", ["forward", "backward"])
def test_options(part):
    measured = {row["name"]: row for row in results("hopper_h200.json")["rows"]}
    options = ("", " causal", " fp16", " grouped 24/8", " dim 64", " dim 96", " dim 256")
    header, rows = next(
        x for x in tables(PERFORMANCE).items() if x[0].startswith(f"{part} of `hopper` on an H200 | ")
    )
    assert len(header.split(" | ")) == 4
    for option, (_, *cells) in zip(options, rows, strict=True):
        for shape, cell in zip("abc", cells, strict=True):
            speed, kept = re.fullmatch(r"(\d+) \(([\d.]+)\)", cell).groups()
            shows(speed, measured[f"{shape}1{option}"][f"{part}_tflops"])
            shows(kept, measured[f"{shape}1{option}"][f"{part}_kept"])


def test_between():
    measured = {
        row["problem"].partition(", bfloat16")[0]: row for row in results("between_h200.json")["rows"]
    }
    label_of = re.compile(r"([\dx]+), window (\d+), batch (\d+), dim (\d+)")
    for label, *cells in tables(PERFORMANCE)[" | `hopper` | `triton` | dense | dense, masked forward"]:
        extent, size, batch, dim = label_of.fullmatch(label).groups()
        rank = 1 + extent.count("x")
        window = "x".join([size] * rank)
        row = measured[f"attend {rank}-D {extent}, window {window}, batch {batch}, 16 heads, dim {dim}"]
        wanted = (
            (row["hopper_forward"], row["hopper_backward"]),
            (row["triton_forward"], row["triton_backward"]),
            (row["dense_forward"], row["dense_backward"]),
            (row["masked_forward"],),
        )
        for cell, values in zip(cells, wanted, strict=True):
            for text, value in zip(cell.split(" / "), values, strict=True):
                shows(text, value)


def test_documents():
    rows = results("documents_h200.json")["rows"]
    header = "documents | forward 1-D | 2-D | 3-D | backward 1-D | 2-D | 3-D"
    columns = [(mode, kind) for mode in ("forward", "backward") for kind in ("line", "plane", "volume")]
    endings = {"of one shape": "equal", "mixed, packed": "mixed packed", "mixed, padded": "mixed padded"}
    found = tables(ROOT / "docs" / "varlen.md")[header]
    assert [label for label, *_ in found] == list(endings)
    for label, *cells in found:
        for (mode, kind), cell in zip(columns, cells, strict=True):
            values = [
                row[f"{mode}_by_boxes"]
                for row in rows
                if row["name"].startswith(kind) and endings[label] in row["name"]
            ]
            least, _, most = cell.partition("-")
            shows(least, min(values))
            shows(most or least, max(values))


def test_mlx_on_an_h200():
    measured = {(x["case"], x["dtype"]): x for x in results("mlx-cuda.json")["cases"]}
    rows = tables(PERFORMANCE)[" | forward, ms | ratio | forward and backward, ms | ratio"]
    assert len(rows) == len(measured)
    for (label, *cells), (case, dtype) in zip(
        rows,
        [(case, dtype) for case in ("2d_256", "3d_32") for dtype in ("bfloat16", "float32")],
        strict=True,
    ):
        assert label.endswith(dtype)
        row = measured[case, dtype]
        wanted = [row[mode][x] for mode in ("forward", "training") for x in ("cuda", "ratio")]
        for text, value in zip(cells, wanted, strict=True):
            shows(text, value["ms"] if isinstance(value, dict) else value)


def test_readme():
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    peers = [
        row["peers"][name]
        for row in results("cpu.json")["rows"]
        for name in ("flex", "dense", "natten_mps")
        if (row["mode"], row["dtype"]) == ("forward", "float32")
    ]
    ratios = [peer["ratio"] for peer in peers if "missing" not in peer]
    least, most = re.search(r"natten-mps take ([\d.]+) to ([\d.]+) times", text).groups()
    shows(least, min(ratios))
    shows(most, max(ratios))
    ratios = [
        row["forward_sustained_ratio"]
        for row in results("hopper_h200.json")["rows"]
        if row["name"] in HOPPER.values()
    ]
    least, most = re.search(r"`hopper` sustains ([\d.]+) to ([\d.]+) of cuDNN", text).groups()
    shows(least, min(ratios))
    shows(most, max(ratios))
