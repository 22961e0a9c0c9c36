"""Say what works on this machine: plug-in routes, sandbox, GPU, ways to load models, processes.

Exit status 0 if the stock command finds the model and untrusted code can be run, else 1.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_embednoise import _hook

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

_PACKAGES = ("lm-eval", "torch", "transformers", "accelerate", "datasets", "sacrebleu")

# Run in a fresh interpreter with nothing of ours imported by hand: what the stock command sees.
_PROBE = """
import sys
import lm_eval.models
hook = sys.modules.get("lm_eval_embednoise._hook")
from lm_eval.api.registry import model_registry
from lm_eval.tasks import TaskManager
names = TaskManager().all_tasks
waiting = hook.waiting.replace(" ", "_") if hook else "not_set"
from importlib import import_module
from lm_eval_embednoise import host
patches = [patch.apply(import_module(patch.module)) for patch in host.PATCHES]
print(waiting, hook is not None, "hf-embednoise" in model_registry, "hf" in model_registry,
      sum(name.endswith("_diverse") for name in names), f"{sum(patches)}/{len(patches)}")
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`doctor` has no options."""


def run(args: argparse.Namespace) -> int:
    """Print the findings, a line each."""
    healthy = True
    for title, section in (
        ("versions", _versions()),
        ("routes into lm_eval", _routes()),
        ("sandbox for generated code", _sandbox()),
        ("devices", _devices()),
        ("loading models", _kernels()),
        ("several processes", _processes()),
        ("data", _data()),
    ):
        print(title)
        for ok, name, text in section:
            print(f"  {'ok' if ok else '--':3} {name:26} {text}")
            healthy = healthy and (ok or not name.endswith("*"))
    print("\nlines marked * are needed for the stock command; the others are options")
    return 0 if healthy else 1


Finding = tuple[bool, str, str]  # works, name (ending in * where needed), details


def _versions() -> Iterator[Finding]:
    yield True, "python", f"{platform.python_version()} on {platform.system()}"
    for name in ("lm-eval-embednoise", *_PACKAGES):
        try:
            yield True, name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield False, name, "not installed"


def _routes() -> Iterator[Finding]:
    environment = dict(os.environ)
    if _hook.waiting != "the user's":  # what this command set is not what a user's shell has
        environment.pop(_hook.WAITS[0], None)
    probe = subprocess.run(
        [sys.executable, "-c", _PROBE], capture_output=True, text=True, check=False, env=environment
    )
    words = probe.stdout.split()[-6:]
    nothing = ("not_set", "False", "False", "False", "0", "0/1")
    waiting, hook, model, others, tasks, patches = words if len(words) == 6 else nothing
    off = os.environ.get("EMBEDNOISE_NO_HOOK", "0") not in ("", "0")
    yield (
        hook == "True",
        "import hook *",
        "active: lm_eval loads the plug-in when it is imported"
        if hook == "True"
        else "switched off by EMBEDNOISE_NO_HOOK"
        if off
        else "no .pth file read; install with pip, or use `embednoise run`",
    )
    yield model == "True", "model hf-embednoise *", "known to the stock command"
    yield others == "True", "the harness's own models", "still available"
    yield int(tasks) > 0, "tasks *", f"{tasks} names end in _diverse in a plain TaskManager"
    done, of = map(int, patches.split("/"))
    yield done == of, "places in lm_eval", f"{done} of {of} that the plug-in extends exist"
    yield _waiting("OpenMP in lm_eval", waiting.replace("_", " "))
    yield _waiting("OpenMP in embednoise", _hook.waiting)
    command = shutil.which("lm_eval")
    yield command is not None, "command lm_eval", command or "not on PATH"
    yield True, "command embednoise run", "always works: it registers the plug-in itself"
    points = importlib.metadata.entry_points(group="lm_eval.models")
    names = ", ".join(point.name for point in points) or "none declared"
    yield "hf-embednoise" in names, "entry point", f"{names} (for harness versions that read them)"


def _waiting(name: str, state: str) -> Finding:
    """How OpenMP's threads wait for each other, and whether that was set early enough."""
    ours = "=".join(_hook.WAITS)
    set_ = ", ".join(f"{n}={os.environ[n]}" for n in _hook.WAITING if n in os.environ)
    if state == "the user's":
        return True, name, f"your own {set_}"
    if state == "ours":
        return True, name, f"{ours}, set before torch: waiting threads soon sleep"
    if state == "too late":
        return False, name, f"{ours} was set after torch was loaded: not read"
    return False, name, f"waiting threads spin; on a shared machine export {ours}"


def _sandbox() -> Iterator[Finding]:
    from lm_eval_embednoise import sandbox

    levels = sandbox.available_levels()
    for name, text in sandbox.describe().items():
        yield name in levels, name, text
    try:
        yield True, "chosen *", sandbox.strongest()
    except sandbox.SandboxError as error:
        yield False, "chosen *", str(error)


def _devices() -> Iterator[Finding]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        properties = torch.cuda.get_device_properties(index)
        yield True, f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if not count:
        yield False, "cuda", "no GPU visible to PyTorch"
    yield True, "cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    yield _compiled()


def _compiled() -> Finding:
    """Whether noise and decoding on a CPU are computed in C."""
    from lm_eval_embednoise.kernels import build

    name = "compiled functions"
    if not build.wanted():
        return False, name, f"switched off by {build.VARIABLE}"
    if build.library("step") and build.library("draws"):
        return True, name, "noise and float32 decoding on a CPU in C"
    compiler = build.find_compiler()
    missing = f"{compiler} can't compile them" if compiler else "no C compiler (cc, gcc or clang)"
    return False, name, f"{missing}: PyTorch's operations serve, about half as fast"


def _kernels() -> Iterator[Finding]:
    from lm_eval_embednoise.models.gguf_file import PACKAGED
    from lm_eval_embednoise.models.loading import ATTENTIONS, QUANTIZATIONS

    for name in QUANTIZATIONS:
        yield _loads(name, quantization=name) or _quantizes(name)
    for name in ATTENTIONS:
        yield _loads(name, attn_implementation=name) or (True, name, "ready")
    ways: dict[str, dict[str, Any]] = {
        "peft adapters": {"peft": str(_EMBEDDED)},
        "GGUF files": {"gguf_file": "x.gguf"},
        **{name: {"pretrained": name} for name in PACKAGED},
        "parallelize": {"parallelize": True},
    }
    for name, arguments in ways.items():
        yield _loads(name, **arguments) or (True, name, "ready")


_EMBEDDED = Path(__file__).parents[1] / "minicoder" / "model"


def _loads(name: str, **arguments: Any) -> Finding | None:
    """What the model class says to an argument: why it refuses it, or None."""
    from lm_eval_embednoise.models.loading import Loading

    try:
        Loading.from_args(arguments.pop("pretrained", str(_EMBEDDED)), arguments)
    except ImportError as error:
        return False, name, str(error)
    except ValueError as error:
        about_a_file = "_config.json" in str(error) or "x.gguf" in str(error)
        return None if about_a_file else (False, name, str(error))
    return None


def _quantizes(name: str) -> Finding:
    """Whether bitsandbytes quantizes a small layer here and runs it."""
    import bitsandbytes
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = {"int8": "Linear8bitLt", "int4": "Linear4bit"}[name]
    options = (
        {"has_fp16_weights": False}
        if name == "int8"
        else {"quant_type": "nf4", "compute_dtype": torch.float16}
    )
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of kernels it could load
    try:
        layer = getattr(bitsandbytes.nn, kind)(64, 64, bias=False, **options).to(device)
        with torch.no_grad():
            layer(torch.ones(2, 64, dtype=torch.float16, device=device))
    except Exception as error:
        return False, name, f"bitsandbytes {bitsandbytes.__version__} fails on {device}: {error}"
    return True, name, f"bitsandbytes {bitsandbytes.__version__} runs on {device}"


def _processes() -> Iterator[Finding]:
    import torch.distributed

    gloo = torch.distributed.is_available() and torch.distributed.is_gloo_available()
    yield gloo, "several processes", "torchrun with gloo" if gloo else "PyTorch has no gloo"
    accelerate = shutil.which("accelerate")
    text = "starts one process per GPU; on a CPU the model class starts the rest through torchrun"
    yield accelerate is not None, "accelerate launch", text if accelerate else "not on PATH"
    mpi = shutil.which("mpirun") or shutil.which("mpiexec")
    yield mpi is not None, "mpirun", mpi or "not on PATH; needed for --mpirun_hostfile alone"


def _data() -> Iterator[Finding]:
    from lm_eval_embednoise.minicoder import MODEL_DIR

    weights = MODEL_DIR / "model.safetensors"
    yield weights.is_file(), "embedded model", str(MODEL_DIR)
    folder = os.environ.get("EMBEDNOISE_DATA")
    yield bool(folder), "EMBEDNOISE_DATA", folder or "not set: benchmarks come from the hub"
