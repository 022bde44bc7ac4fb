"""The command line, run as a user does."""

import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import requires
from importlib.util import find_spec

import pytest

from vicinal import Axis, __version__, catalog, draw
from vicinal.cli import COMMANDS, main
from vicinal.cli.extras import EXTRAS
from vicinal.cli.frameworks import FRAMEWORKS
from vicinal.dispatch import choose

TORCH = pytest.mark.skipif(find_spec("torch") is None, reason="needs PyTorch")
DEMO = ("sklearn", "skimage", "matplotlib", "tqdm")


def drawn(text: str) -> list[str]:
    """The rows of a drawing, without heading, blank lines and legend."""
    lines = text.splitlines()[1:-1]
    return [line.replace(" ", "") for line in lines if line and not line.startswith("[")]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert f"usage: vicinal {command}" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.split() == ["vicinal", __version__]


def test_a_command_is_needed(capsys):
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "COMMAND" in capsys.readouterr().err


def test_draw_shows_the_keys_of_an_output(capsys):
    assert main(["draw", "--lengths", "4", "7", "--kernel-size", "2", "3", "--dilation", "1", "2",
                 "--output", "3", "4"]) == 0  # fmt: skip
    assert drawn(capsys.readouterr().out) == [".......", ".......", "..#.#.#", "..#.@.#"]


def test_draw_shows_the_outputs_of_a_key(capsys):
    assert main(["draw", "--lengths", "8", "--kernel-size", "4", "--causal", "--key", "3"]) == 0
    assert drawn(capsys.readouterr().out) == ["...@###."]


def test_draw_names_causal_axes(capsys):
    main(["draw", "--lengths", "3", "3", "--kernel-size", "3", "--causal", "1", "--output", "0", "1"])
    assert drawn(capsys.readouterr().out) == ["#@.", "##.", "##."]


def test_draw_marks_an_output_that_does_not_see_itself():
    # Blocks of three share the window of their middle.
    axis = Axis(9, 3, stride=3)
    for output in range(9):
        row = drawn(draw.text([axis], [output]))[0]
        assert [place for place, mark in enumerate(row) if mark in "#@"] == list(axis.keys(output))
        assert row[output] in "o@"


def test_draw_puts_outputs_where_their_tokens_are():
    axis = Axis(10, 3, output_stride=3)
    assert drawn(draw.text([axis], [1])) == ["..#@#....."]
    assert drawn(draw.text([axis], [4], inverse=True)) == ["...#o....."]


def test_draw_separates_the_planes_of_three_axes(capsys):
    main(["draw", "causal_3d", "--output", "1", "0", "0"])
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("[")] == ["[0]", "[1]", "[2]", "[3]"]
    assert "".join(drawn(out)).count("#") == 1


def test_a_reader_that_has_enough_ends_the_output():
    command = [sys.executable, "-m", "vicinal", "draw", "--lengths", "9"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout
        assert run.stderr
        run.stdout.close()
        assert run.stderr.read() == ""


def test_a_picture_that_cannot_be_written_is_an_error(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    with pytest.raises(SystemExit, match="2"):
        main(["draw", "--lengths", "9", "--png", str(tmp_path / "nowhere" / "window.png")])
    assert "no picture: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--lengths", "4", "--kernel-size", "5"], "kernel_size 5 is over the 4 tokens of axis 0"),
        (["--lengths", "4", "4", "4", "4"], "number of --lengths is 4"),
        (["--lengths", "9", "--kernel-size", "3", "3"], "2 entries for 1 spatial axes"),
        (["--lengths", "9", "--output", "9"], "no place"),
        (["--lengths", "9", "--output", "1", "1"], "no place"),
        (["--lengths", "9", "--output", "1", "--key", "1"], "not both"),
        (["--lengths", "9", "9", "--causal", "2"], "axis of --causal is 2; pass 0 or 1"),
        (["nothing"], "case 'nothing' is unknown"),
        (["odd_1d", "--lengths", "9"], "pass the name of a case, or --lengths"),
        ([], "pass the name of a case, or --lengths"),
    ],
)
def test_draw_says_what_is_wrong(argv, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["draw", *argv])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("lengths", [(9,), (5, 6), (3, 4, 5)])
def test_picture_has_a_pixel_for_every_token(lengths, inverse, tmp_path, monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    shown = []
    monkeypatch.setattr(pyplot.Axes, "imshow", lambda self, image, **_: shown.append(image))
    axes = [Axis(length, 3) for length in lengths]
    place = [length // 2 for length in lengths]
    draw.picture(axes, place, tmp_path / "window.png", inverse=inverse)
    flat = [shade for plane in shown for row in plane for shade in row]
    marks = "".join(drawn(draw.text(axes, place, inverse=inverse)))
    assert [shade > 0 for shade in flat] == [mark != draw.HIDDEN for mark in marks]
    assert (tmp_path / "window.png").stat().st_size > 0


def test_plan_counts_what_a_tile_kernel_visits(capsys):
    # Tiles of 4 outputs see 6 keys, at the ends 5: two boxes of 4 each. The keys' tiles see as many outputs.
    argv = ["plan", "--lengths", "16", "--kernel-size", "3", "--rows", "4", "--columns", "4"]
    assert main(argv) == 0
    problem, useful, *passes = capsys.readouterr().out.splitlines()
    assert "1-D 16, window 3" in problem
    assert "useful pairs per head: 48" in useful
    for line in passes:
        assert "boxes 4 over 4: 4 tiles visit 8 boxes" in line
        assert line.endswith(f"{8 * 16 / 48:.2f}")


@pytest.mark.parametrize("name", [case.name for case in catalog.SMALL])
def test_plan_takes_every_small_case(name, capsys):
    assert main(["plan", name, "--rows", "16", "--columns", "16"]) == 0
    assert str(catalog.named(name).problem) in capsys.readouterr().out


@pytest.mark.parametrize("rows", ["0", "48"])
def test_plan_wants_powers_of_two(rows, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["plan", "odd_1d", "--rows", rows])
    assert f"{rows} is no power of two" in capsys.readouterr().err


def test_doctor_names_versions_and_missing_extras(capsys, monkeypatch):
    monkeypatch.setenv("VICINAL_BACKEND", "reference")
    monkeypatch.setattr("vicinal.cli.extras.EXTRAS", {"none": ("no-such-package",)})
    monkeypatch.setattr("vicinal.cli.frameworks.FRAMEWORKS", {})
    assert main(["doctor"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["vicinal"] == __version__
    assert lines["no-such-package"] == "not installed"
    assert lines["VICINAL_BACKEND"] == "reference"
    assert "pip install 'vicinal[none]'" in lines["extra"]


@TORCH
def test_doctor_names_devices(capsys):
    import torch

    assert main(["doctor"]) == 0
    lines = dict(re.split(r"  +", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["torch"] == torch.__version__
    assert lines["torch on cpu"].startswith(f"{torch.get_num_threads()} threads")


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_support_agrees_with_dispatch(framework, capsys):
    pytest.importorskip(framework)
    table = import_module(f"vicinal.{framework}.backends").BACKENDS
    assert main(["support", "--framework", framework, "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    header = next(line for line in lines if line.startswith("problem")).split()[1:]
    assert header == [backend.name for backend in table]
    for case in catalog.CASES:
        row = next(line for line in lines if line.split()[:1] == [case.name]).split()[1:]
        assert header[row.index("runs")] == choose(table, case.problem).name


@TORCH
def test_support_gives_the_reason_of_a_refusal(capsys):
    assert main(["support", "odd_2d", "whole", "--gradients", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "[1] the window does not cover every axis" in out
    assert "whole: attend 2-D 6x5, window 6x5, batch 2, 2 heads, dim 8, float32, cpu, with gradients" in out


@TORCH
def test_support_names_the_cases_there_are(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["support", "odd_9d"])
    assert "case 'odd_9d' is unknown; pass some of nat_tiny_s1" in capsys.readouterr().err


def test_extras_are_those_of_the_package():
    wanted = {}
    for line in requires("vicinal") or []:
        extra = re.search(r"extra == ['\"](\w+)['\"]", line)
        if extra is not None:
            wanted.setdefault(extra[1], set()).add(re.match(r"[\w-]+", line)[0])
    assert {extra: set(packages) for extra, packages in EXTRAS.items()}.items() <= wanted.items()


@pytest.mark.parametrize(
    ("argv", "extra"),
    [
        (["demo"], "demo"),
        (["support", "--framework", "torch"], "torch"),
        (["draw", "odd_1d", "--png", "x"], "plot"),
    ],
)
def test_a_missing_extra_is_named(argv, extra, capsys, monkeypatch):
    monkeypatch.setattr(
        "vicinal.cli.extras.EXTRAS", dict.fromkeys(EXTRAS, ()) | {extra: ("no-such-package",)}
    )
    with pytest.raises(SystemExit, match="2"):
        main(argv)
    assert f"missing no-such-package: pip install 'vicinal[{extra}]'" in capsys.readouterr().err


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_demo_wants_no_framework_but_its_own(framework, capsys, monkeypatch):
    others = FRAMEWORKS.keys() - {framework}
    monkeypatch.setattr("vicinal.cli.extras.EXTRAS", {framework: (), "demo": (*others, "no-such-package")})
    monkeypatch.setattr("vicinal.cli.extras.installed", lambda package: None)
    with pytest.raises(SystemExit, match="2"):
        main(["demo", "--framework", framework])
    assert "missing no-such-package: pip install" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--device", "tpu"), "--device is tpu, which is not here; pass "),
        (("--epochs", "0"), "--epochs is 0; pass 1 or more"),
    ],
)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_demo_asks_for_what_is_here(framework, option, message, capsys):
    for needed in (framework, *DEMO):
        pytest.importorskip(needed)
    with pytest.raises(SystemExit, match="2"):
        main(["demo", "--framework", framework, *option])
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_demo_learns_cleans_and_draws(framework, tmp_path, capsys):
    for needed in (framework, *DEMO):
        pytest.importorskip(needed)
    assert main(["demo", "--framework", framework, "--epochs", "2", "--folder", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    share = float(out.split("%")[0].rsplit(maxsplit=1)[-1])
    assert share > 85
    assert "20.1 dB to 29.3 dB" in out
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("attention.png", "features.png"))
