"""From Metal source to a shared library of the host, by clang; results are kept in a cache directory."""

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

HERE = Path(__file__).parent
CLANG = os.environ.get("MSLCPU_CLANG", "clang++-19")
LLVM_CONFIG = os.environ.get("MSLCPU_LLVM_CONFIG", "llvm-config-19")
SHIM = HERE / "shim"
NATIVE = HERE / "native"
# Standard headers, all of which stand for the shim.
HEADERS = [
    "metal_stdlib",
    "metal_simdgroup",
    "metal_simdgroup_matrix",
    "metal_math",
    "metal_integer",
    "metal_atomic",
    "metal_array",
    "metal_common",
    "metal_compute",
    "metal_geometric",
    "metal_limits",
    "metal_matrix",
    "metal_pack",
    "metal_quadgroup",
    "metal_relational",
    "metal_type_traits",
    "metal_uniform",
    "metal_texture",
    "metal_graphics",
    "simd/simd.h",
]
LANGUAGE = [
    "-x",
    "clcpp",
    "-cl-std=clc++2021",
    "-cl-no-stdinc",
    "-cl-single-precision-constant",
    "-Xclang",
    "-cl-ext=-cl_khr_fp64,-__opencl_c_fp64",
    "-target",
    "x86_64-linux-gnu",
    "-Xclang",
    "-ffake-address-space-map",
    "-Wno-unknown-attributes",
    "-Wno-ignored-attributes",
    "-Wno-static-float-init",
    "-Wno-undefined-var-template",
    "-Wno-unknown-pragmas",
    "-Wno-return-type-c-linkage",
    "-Wno-duplicate-decl-specifier",
    "-Wno-pass-failed",
    "-Wno-constant-logical-operand",
    "-ferror-limit=20",
]
# Vectorising would merge operations that the GPU does one by one, and so change what is counted.
CODE = [
    "-O2",
    "-gline-tables-only",
    "-fno-math-errno",
    "-fPIC",
    "-mavx2",
    "-mfma",
    "-mf16c",
    "-ffp-contract=on",
    "-fno-vectorize",
    "-fno-slp-vectorize",
    "-mllvm",
    "-disable-vector-combine",
    "-Xclang",
    "-ffloat16-excess-precision=none",
    "-Xclang",
    "-fbfloat16-excess-precision=none",
]


class MSLError(Exception):
    """The source does not compile, or a launch is wrong; with findings, their text."""


def cache() -> Path:
    given = os.environ.get("MSLCPU_CACHE")
    found = Path(given) if given else Path(tempfile.gettempdir()) / f"mslcpu-{os.getuid()}"
    found.mkdir(parents=True, exist_ok=True)
    return found


def run(command: list[str], source: str | None = None, **environment: str) -> subprocess.CompletedProcess:
    """Runs a compiler; an error is an `MSLError` that holds what it said."""
    done = subprocess.run(
        command, input=source, capture_output=True, text=True, env=os.environ | environment, check=False
    )
    if done.returncode:
        raise MSLError(done.stderr[:8000])
    return done


@lru_cache
def native() -> tuple[Path, Path]:
    """The runtime and the compiler pass, built where the cache has none of these sources."""
    sources = sorted(NATIVE.iterdir())
    text = b"".join(path.read_bytes() for path in sources)
    stamp = hashlib.sha256(text).hexdigest()[:16]
    runtime, plugin = cache() / f"libmslcpu-{stamp}.so", cache() / f"pass-{stamp}.so"
    shared = [CLANG, "-fPIC", "-shared"]
    if not runtime.exists():
        parts = [str(path) for path in sources if path.suffix == ".cpp" and path.name != "pass.cpp"]
        _publish([*shared, "-std=c++20", "-O2", *parts], runtime)
    if not plugin.exists():
        flags = run([LLVM_CONFIG, "--cxxflags"]).stdout.split()
        _publish([*shared, *flags, "-std=c++17", "-O1", str(NATIVE / "pass.cpp")], plugin)
    return runtime, plugin


def preprocess(source: str, name: str, include: tuple[str, ...] = ()) -> str:
    """Source after the preprocessor, with line markers."""
    command = [
        CLANG,
        "-E",
        "-x",
        "c++",
        "-std=c++20",
        "-nostdinc",
        "-undef",
        "-Wno-everything",
        f"-I{_headers()}",
    ]
    command += [f"-I{path}" for path in include]
    command += ["-D__METAL__=1", "-D__METAL_VERSION__=320", "-D__HAVE_BFLOAT__=1", "-"]
    return run(command, f'#line 1 "{name}"\n{source}').stdout


@lru_cache
def _headers() -> Path:
    """A folder of empty files, one for each standard header."""
    headers = cache() / "headers"
    for header in HEADERS:
        path = headers / header
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return headers


def library(text: str, *, hooks: bool, fast_math: bool) -> Path:
    """Shared library of a rewritten source."""
    runtime, plugin = native()
    flags = [*LANGUAGE, *CODE, f"-fpass-plugin={plugin}", f"-I{SHIM}"]
    flags += ["-ffast-math"] * fast_math
    stamp = hashlib.sha256(f"{text}{flags}{hooks}{runtime}{shim_stamp()}".encode()).hexdigest()[:20]
    built = cache() / f"{stamp}.so"
    if not built.exists():
        with _folder() as folder:
            source, compiled = folder / "source.clcpp", folder / "source.o"
            source.write_text(text)
            environment = {} if hooks else {"MSLCPU_NO_HOOKS": "1"}
            run([CLANG, *flags, "-c", str(source), "-o", str(compiled)], **environment)
            _publish(
                [CLANG, "-shared", str(compiled), "-lm", str(runtime), f"-Wl,-rpath,{runtime.parent}"], built
            )
    return built


@lru_cache
def shim_stamp() -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(SHIM.rglob("*.h")))).hexdigest()


@contextmanager
def _folder() -> Iterator[Path]:
    """Of one build alone, in the cache: clang maps a source, and crashes where another build writes it."""
    with tempfile.TemporaryDirectory(dir=cache()) as folder:
        yield Path(folder)


def _publish(command: list[str], target: Path) -> None:
    """Builds elsewhere first: processes that share the cache never see half a file."""
    with _folder() as folder:
        partial = folder / target.name
        run([*command, "-o", str(partial)])
        partial.rename(target)
