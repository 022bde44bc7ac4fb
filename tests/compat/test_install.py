"""`vicinal.compat.install`: what imports and version queries then find, and how it ends."""

import importlib
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec

import pytest

import vicinal.compat

VERSIONS = ["0.14.6", "0.15.1", "0.17.5", "0.20.1", "0.21.7"]


@pytest.fixture(autouse=True)
def _clean():
    yield
    vicinal.compat.uninstall()


@pytest.mark.parametrize("version", VERSIONS)
def test_every_submodule_imports(version):
    vicinal.compat.install(f"natten=={version}")
    natten = importlib.import_module("natten")
    assert natten.__version__ == metadata.version("natten") == version
    assert find_spec("natten").submodule_search_locations is not None
    tree = vicinal.compat.finder.packages.tree_of("natten", version)
    for name in filter(None, tree):
        module = importlib.import_module(f"natten.{name}")
        found = natten
        for part in name.split("."):
            found = getattr(found, part)
        assert found is module
        assert find_spec(f"natten.{name}") is not None


def test_what_clients_probe():
    with vicinal.compat.install("natten==0.14.6"):
        natten = importlib.import_module("natten")
        assert not hasattr(natten, "context")
        assert natten.NeighborhoodAttention is natten.NeighborhoodAttention2D
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("natten.context")
    with vicinal.compat.install("natten==0.15.1"):
        natten = importlib.import_module("natten")
        assert natten.has_gemm()
        assert not hasattr(natten, "has_fused_na")
        assert importlib.import_module("natten.functional").na2d_qk_with_bias
    with vicinal.compat.install("natten==0.17.5"):
        natten = importlib.import_module("natten")
        assert natten.has_fused_na()
        assert natten.context.is_fna_enabled() is False
        assert natten.functional.na2d_qk
        assert natten.utils.log.get_logger("x").name == "x"
    with vicinal.compat.install("natten"):
        natten = importlib.import_module("natten")
        assert natten.__version__ == "0.21.7"
        assert natten.HAS_LIBNATTEN is True
        assert natten.na2d is natten.functional.na2d
        assert not hasattr(natten.functional, "na2d_qk")
        assert natten.utils.checks.check_all_args(2, 3, 1, 1, None) == (
            (3, 3),
            (1, 1),
            (1, 1),
            (False, False),
        )


@pytest.mark.parametrize("name", ["natten", "Natten"])
def test_distribution(name):
    vicinal.compat.install("natten==0.17.5")
    found = metadata.distribution(name)
    assert (found.metadata["Name"], found.version) == ("natten", "0.17.5")
    assert metadata.packages_distributions()["natten"] == ["natten"]
    assert "natten" in {one.metadata["Name"] for one in metadata.distributions()}
    assert metadata.version("numpy")


def test_natten_mps():
    with vicinal.compat.install("natten-mps==0.3.3"):
        functional = importlib.import_module("natten_mps.extras.allin1.functional")
        natten_mps = importlib.import_module("natten_mps")
        assert functional.natten1dqkrpb
        assert natten_mps.nn.NeighborhoodAttention2D is natten_mps.NeighborhoodAttention2D
        assert natten_mps.compat.for_version("0.17.5").na2d_qk is natten_mps.compat.v017.na2d_qk
        assert metadata.version("natten-mps") == metadata.version("natten_mps") == "0.3.3"


def test_natten_mlx_is_found_beside_mlx():
    tree = vicinal.compat.finder.packages.tree_of("natten_mlx", "0.3.3")
    assert list(tree[""]) == ["vicinal.mlx.compat.natten_mlx"]
    assert list(tree["compat"]) == ["vicinal.mlx.compat"]
    assert list(tree["extras.allin1"]) == ["vicinal.mlx.compat.allin1"]


def test_uninstall_leaves_nothing():
    handle = vicinal.compat.install("natten==0.17.5")
    assert repr(handle) == "Installed(natten==0.17.5)"
    importlib.import_module("natten.utils.log")
    vicinal.compat.uninstall("natten")
    assert not [name for name in sys.modules if name.partition(".")[0] == "natten"]
    assert find_spec("natten") is None
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.version("natten")
    vicinal.compat.uninstall("natten")


def test_several_packages_at_once():
    with vicinal.compat.install("natten==0.17.5"), vicinal.compat.install("natten_mps"):
        assert importlib.import_module("natten").__version__ == "0.17.5"
        assert importlib.import_module("natten_mps").__version__ == "0.3.3"
    assert find_spec("natten_mps") is None


def test_installing_again():
    vicinal.compat.install("natten==0.17.5")
    vicinal.compat.install("natten==0.17.5")
    assert sum(isinstance(finder, vicinal.compat.Finder) for finder in sys.meta_path) == 1
    with pytest.raises(RuntimeError, match=r"natten 0\.17\.5 is installed; call uninstall"):
        vicinal.compat.install("natten==0.14.6")


def test_refuses_where_the_real_package_is_imported(tmp_path, monkeypatch):
    (tmp_path / "natten.py").write_text("__version__ = 'real'\n")
    monkeypatch.syspath_prepend(tmp_path)
    real = importlib.import_module("natten")
    with pytest.raises(RuntimeError, match=r"natten is already imported, from .*natten\.py; call install"):
        vicinal.compat.install("natten==0.17.5")
    assert real.__version__ == "real"
    del sys.modules["natten"]
    with vicinal.compat.install("natten==0.17.5"):
        assert importlib.import_module("natten").__version__ == "0.17.5"
    assert importlib.import_module("natten").__version__ == "real"
    del sys.modules["natten"]


@pytest.mark.parametrize(
    "requirement", ["torch==2.0", "natten>=0.17", "natten==", "", "natten==0.17.5.dev1", None]
)
def test_requirements_that_are_not_understood(requirement):
    with pytest.raises(ValueError, match="is not understood; pass natten"):
        vicinal.compat.install(requirement)


@pytest.mark.parametrize("version", ["0.13.1", "0.22.0", "1.0"])
def test_releases_that_are_not_known(version):
    with pytest.raises(ValueError, match=r"NATTEN .* is not known here"):
        vicinal.compat.install(f"natten=={version}")
    assert find_spec("natten") is None
    with pytest.raises(ValueError, match=rf"natten_mps {version} is not known here; give 0\.3\.3"):
        vicinal.compat.install(f"natten-mps=={version}")


def test_a_build_of_a_release_is_that_release():
    with vicinal.compat.install("natten==0.17.1+torch230cu121"):
        assert importlib.import_module("natten").__version__ == metadata.version("natten") == "0.17.1"


def run(*arguments):
    command = [sys.executable, "-m", "vicinal.compat", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_running_a_script(tmp_path):
    (tmp_path / "beside.py").write_text("import natten\nversion = natten.__version__\n")
    script = tmp_path / "script.py"
    script.write_text("import sys, beside\nprint(__name__, beside.version, sys.argv[1:])\n")
    done = run("natten==0.14.6", str(script), "--natten", "natten")
    assert done.stdout == "__main__ 0.14.6 ['--natten', 'natten']\n", done.stderr


def test_running_a_module():
    done = run("natten==0.17.5", "natten_mps", "-m", "pydoc", "natten.context.use_fused_na")
    assert "use_fused_na(" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), ""),
        (("script.py",), "script.py is not one of natten, natten_mps, natten_mlx"),
        (("natten==0.17.5",), ""),
        (("natten", "-m"), ""),
        (("natten==1.0", "script.py"), "NATTEN 1.0 is not known here; give a release from 0.14 to 0.21"),
        (("natten==0.17.5", "natten==0.14.6", "script.py"), "natten 0.17.5 is installed; call uninstall"),
    ],
)
def test_usage(arguments, message):
    done = run(*arguments)
    assert done.returncode
    assert done.stderr.startswith("usage: python -m vicinal.compat"), done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
