"""Packages of others that benchmarks compare with: where they are, or how they are installed."""

import os
import subprocess
import sysconfig
import venv
from importlib import metadata
from pathlib import Path

PINNED = {"natten_mps": "natten-mps==0.3.3", "natten": "natten==0.17.5"}


def unpacked(peer: str, packages: Path) -> str | None:
    """Why a peer cannot be imported from a folder, or None."""
    name, version = PINNED[peer].split("==")
    found = [x.version for x in metadata.distributions(path=[str(packages)]) if x.metadata["Name"] == name]
    if found == [version]:
        return None
    return f"{packages.name} holds {found[0] if found else 'none'} of it; {version} is wanted"


def install(peer: str, home: Path, build: bool) -> tuple[str, str | None]:
    """The interpreter that runs a peer, and why it cannot."""
    place = home / peer
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        venv.create(place, with_pip=True)
        shared = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        Path(shared, "host.pth").write_text(sysconfig.get_path("purelib") + "\n")
    seek = f"import importlib.util as u; raise SystemExit(not u.find_spec('{peer}'))"
    if not subprocess.run([python, "-c", seek], check=False).returncode:
        return str(python), None
    if peer == "natten" and not build:
        return str(python), "not built; run with --build"
    pip = [python, "-m", "pip", "install", "-q"]
    environment = {**os.environ, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    if build:
        subprocess.run([*pip, "wheel", "setuptools<80", "packaging"], check=True)
    command = [*pip, "--no-deps", "--no-build-isolation", PINNED[peer]]
    if subprocess.run(command, env=environment, check=False).returncode:
        return str(python), f"pip could not install {PINNED[peer]}"
    return str(python), None
