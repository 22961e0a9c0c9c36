"""Compile a C source of this folder once on the machine that runs it, and load it.

The library is kept in the user's cache, under a name that tells source, compiler and processor.
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

from lm_eval_embednoise.written import cache_folder, whole

VARIABLE = "EMBEDNOISE_KERNELS"
FOLDER = Path(__file__).parent
# No -ffast-math: not-a-number stays what it is, and linking it would change the whole process.
_ALWAYS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd", "-shared", "-fPIC")
_OWN = {"step": (), "draws": ("-ffp-contract=off",)}
# Tried in turn: a compiler may not know its processor.
_TUNING = (("-march=native",), ("-mcpu=native",), ())
eval_logger = logging.getLogger(__name__)


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
        return ctypes.CDLL(str(_compiled(name, compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        eval_logger.warning("%s.c is not used, %s can't compile it: %s", name, compiler, error)
        return None


def wanted() -> bool:
    """Whether compiled functions may be used."""
    wish = os.environ.get(VARIABLE, "on")
    if wish not in ("on", "off"):
        raise ValueError(f"{VARIABLE}={wish!r}: allowed are on and off")
    return wish == "on"


def find_compiler() -> str | None:
    """The command that compiles C here."""
    found = (shutil.which(command) for command in ("cc", "gcc", "clang"))
    return os.environ.get("CC") or next((path for path in found if path), None)


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
