"""The frameworks that commands run on, and the devices each finds on this machine."""

import argparse
import platform
from importlib.util import find_spec

FRAMEWORKS = {"torch": "PyTorch", "mlx": "MLX"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the option that chooses a framework; by default the first that is installed."""
    default = next((name for name in FRAMEWORKS if find_spec(name) is not None), "torch")
    told = f"default: {default}, the first that is installed here"
    parser.add_argument("--framework", choices=FRAMEWORKS, default=default, help=told)


def devices(framework: str) -> dict[str, str]:
    """Devices by the names that problems have for them, the fastest first, each with a description."""
    return {"torch": _torch, "mlx": _mlx}[framework]()


def _torch() -> dict[str, str]:
    import torch

    found = {}
    if torch.cuda.is_available():
        every = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        about = (f"{gpu.name} ({gpu.major}.{gpu.minor}, {gpu.total_memory >> 30} GiB)" for gpu in every)
        found["cuda"] = ", ".join(about)
    if torch.backends.mps.is_available():
        found["mps"] = platform.machine()
    capability = torch.backends.cpu.get_cpu_capability()
    return found | {"cpu": f"{torch.get_num_threads()} threads, {capability}"}


def _mlx() -> dict[str, str]:
    import mlx.core as mx

    found = {}
    if mx.default_device().type == mx.gpu:
        about = mx.device_info(mx.gpu)
        name = "metal" if mx.metal.is_available() else "cuda"
        found[name] = f"{about['device_name']} ({about['architecture']})"
    return found | {"cpu": platform.machine()}
