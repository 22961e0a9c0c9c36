"""Compile the C sources of this folder once on the machine that runs them; say where they serve.

The library is kept in the user's cache, under a name made of source, compiler and processor.
Without a compiler, or with EMBEDNOISE_KERNELS=off, there is none, and PyTorch's operations serve.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lm_eval_embednoise.written import cache_folder, whole

VARIABLE = "EMBEDNOISE_KERNELS"
FOLDER = Path(__file__).parent
# No -ffast-math: not-a-number stays what it is, and linking it would change the whole process.
_ALWAYS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd", "-shared", "-fPIC")
_OWN = {"step": (), "draws": ("-ffp-contract=off",)}
# Tried in turn: a compiler may not support its processor.
_TUNING = (("-march=native",), ("-mcpu=native",), ())
_long, _float, _array = ctypes.c_long, ctypes.c_float, ctypes.c_void_p
_SIGNATURES: dict[str, dict[str, list[Any]]] = {
    "draws": {
        "vectors": [*[_long] * 4, *[_array] * 3],
        "add_noise": [*[_long] * 4, *[_array] * 6],
    },
    "step": {
        "rms_norm": [_long, _long, _float, *[_array] * 3],
        "silu_product": [*[_long] * 2, *[_array] * 2],
        "sample": [*[_long] * 2, _float, *[_array] * 3],
        "token_nll": [*[_long] * 2, *[_array] * 3],
        "enter": [*[_long] * 6, *[_array] * 8],
        "attend": [*[_long] * 6, _float, *[_array] * 8],
        "attend_prompt": [*[_long] * 7, _float, *[_array] * 6],
        "attend_causal": [*[_long] * 8, _float, *[_array] * 7],
    },
}
eval_logger = logging.getLogger(__name__)


def serve(name: str, *tensors: Tensor) -> bool:
    """Whether the functions of `name`.c are used on these tensors, and not their twins.

    This is the one switch: they take float32 numbers (and integers) in a CPU's memory, and have to
    be compiled.
    """
    for tensor in tensors:
        if tensor.dtype is not torch.float32 and tensor.is_floating_point():
            return False
        if not tensor.is_cpu:
            return False
    return library(name) is not None


@functools.cache
def functions(name: str) -> ctypes.CDLL:
    """The functions of `name`.c, where `serve` has said yes."""
    loaded = library(name)
    assert loaded is not None, f"{name}.c is not compiled: call build.serve first"
    return loaded


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    """The functions of `name`.c, or None where there are none; the log says why, once.

    Raises:
        ValueError: EMBEDNOISE_KERNELS is neither on nor off.
    """
    if not wanted():
        return None
    compiler = find_compiler()
    if compiler is None:
        eval_logger.info("no C compiler (cc, gcc, clang or $CC): noise and decoding take longer")
        return None
    try:
        loaded = ctypes.CDLL(str(_compiled(name, compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        eval_logger.warning("%s.c is not used, %s can't compile it: %s", name, compiler, error)
        return None
    for function, arguments in _SIGNATURES[name].items():
        getattr(loaded, function).argtypes = arguments
    return loaded


def wanted() -> bool:
    """Whether compiled functions may be used."""
    wish = os.environ.get(VARIABLE, "on")
    if wish not in ("on", "off"):
        raise ValueError(f"{VARIABLE}={wish!r}: allowed are on and off")
    return wish == "on"


def find_compiler() -> str | None:
    """The command that compiles C here; None without one."""
    paths = (shutil.which(command) for command in ("cc", "gcc", "clang"))
    return os.environ.get("CC") or next((path for path in paths if path), None)


def _compiled(name: str, compiler: str) -> Path:
    """The shared library; made where it isn't there."""
    source = FOLDER / f"{name}.c"
    made_of = (source.read_text(), compiler, str((_ALWAYS, _OWN[name], _TUNING)), _processor())
    digest = hashlib.blake2b("\0".join(made_of).encode(), digest_size=12).hexdigest()
    target = cache_folder("kernels") / f"{name}-{digest}.so"
    if target.exists():
        return target
    try:
        _compile(compiler, source, target)
    except OSError:  # a home that can't be written to
        target = Path(tempfile.mkdtemp(prefix="embednoise-kernels-")) / target.name
        _compile(compiler, source, target)
    return target


def _compile(compiler: str, source: Path, target: Path) -> None:
    """Compile, and put the result in its place at once: several processes may do this together."""
    with whole(target) as partial:
        for tuning in _TUNING:
            flags = (*_ALWAYS, *_OWN[source.stem], *tuning)
            line = [*compiler.split(), *flags, str(source), "-o", str(partial), "-lm"]
            done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
            if not done.returncode:
                return
        raise subprocess.SubprocessError(done.stderr.strip()[-500:])


def _processor() -> str:
    """What `native` depends on: a shared home may serve different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    kept = ("model name", "flags", "Features", "CPU part")
    return platform.machine() + "".join(sorted({line for line in lines if line.startswith(kept)}))
