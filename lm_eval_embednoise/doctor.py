"""Say what works on this machine: plug-in routes, sandbox, GPU, quantization, attention kernels.

Exit status 0 when the stock command knows the model and untrusted code can be run, else 1.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator

_PACKAGES = ("lm-eval", "torch", "transformers", "accelerate", "datasets", "sacrebleu")

# Run in a fresh interpreter with nothing of ours imported by hand: what the stock command sees.
_PROBE = """
import sys
import lm_eval.models
hook = "lm_eval_embednoise._hook" in sys.modules
from lm_eval.api.registry import model_registry
from lm_eval.tasks import TaskManager
names = TaskManager().all_tasks
print(hook, "hf-embednoise" in model_registry, "hf" in model_registry,
      sum(name.endswith("_diverse") for name in names))
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
        ("quantization and attention", _kernels()),
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
    probe = subprocess.run(
        [sys.executable, "-c", _PROBE], capture_output=True, text=True, check=False
    )
    words = probe.stdout.split()[-4:]
    hook, model, others, tasks = words if len(words) == 4 else ("False", "False", "False", "0")
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
    command = shutil.which("lm_eval")
    yield command is not None, "command lm_eval", command or "not on PATH"
    yield True, "command embednoise run", "always works: it registers the plug-in itself"
    points = importlib.metadata.entry_points(group="lm_eval.models")
    names = ", ".join(point.name for point in points) or "none declared"
    yield "hf-embednoise" in names, "entry point", f"{names} (for harness versions that read them)"
    accelerate = shutil.which("accelerate")
    yield accelerate is not None, "accelerate launch", accelerate or "not on PATH"


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


def _kernels() -> Iterator[Finding]:
    for name, module, text in (
        ("int8, int4", "bitsandbytes", 'pip install "lm-eval-embednoise[quant]"'),
        ("flash_attention_2", "flash_attn", 'pip install "lm-eval-embednoise[flash]"'),
        ("peft adapters", "peft", "pip install peft"),
    ):
        there = importlib.util.find_spec(module) is not None
        yield there, name, f"{module} is installed" if there else f"{module} is missing: {text}"
    yield True, "sdpa, eager", "part of PyTorch"


def _data() -> Iterator[Finding]:
    from lm_eval_embednoise.minicoder import MODEL_DIR

    weights = MODEL_DIR / "model.safetensors"
    yield weights.is_file(), "embedded model", str(MODEL_DIR)
    folder = os.environ.get("EMBEDNOISE_DATA")
    yield bool(folder), "EMBEDNOISE_DATA", folder or "not set: benchmarks come from the hub"
