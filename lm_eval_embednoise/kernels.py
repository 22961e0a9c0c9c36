"""A decode step's small operations in C (kernels.c), compiled once on the machine that runs them.

They serve float32 on a CPU where a C compiler is found; everything else, and all of it with
EMBEDNOISE_KERNELS=off, takes PyTorch's operations, which are the reference in the tests.
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

import torch
from torch import Tensor

VARIABLE = "EMBEDNOISE_KERNELS"
SOURCE = Path(__file__).with_name("kernels.c")
# No -ffast-math: not-a-number stays what it is, and linking it would change the whole process.
_ALWAYS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd", "-shared", "-fPIC")
# Tried in turn: rows of 32 to 128 numbers do best in registers of 256 bits.
_TUNING = (("-march=native", "-mprefer-vector-width=256"), ("-march=native",), ())
_long, _float, _array = ctypes.c_long, ctypes.c_float, ctypes.c_void_p
_SIGNATURES = {
    "rms_norm": [_long, _long, _float, *[_array] * 3],
    "silu_product": [_long, *[_array] * 3],
    "enter": [*[_long] * 5, *[_array] * 9],
    "attend": [*[_long] * 5, _float, *[_array] * 9],
}
eval_logger = logging.getLogger(__name__)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled functions, or None where there are none; says why, once, in the log."""
    wish = os.environ.get(VARIABLE, "on")
    if wish == "off":
        return None
    if wish != "on":
        raise ValueError(f"{VARIABLE}={wish!r}: allowed are on and off")
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        eval_logger.info("no C compiler (cc, gcc or $CC): decoding on a CPU takes PyTorch's speed")
        return None
    try:
        found = ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        eval_logger.warning("%s could not be compiled with %s: %s", SOURCE, compiler, error)
        return None
    for name, arguments in _SIGNATURES.items():
        getattr(found, name).argtypes = arguments
    return found


def _compiled(compiler: str) -> Path:
    """The shared library of this source, compiler and processor; made where it isn't there."""
    made_of = (SOURCE.read_text(), compiler, str(_ALWAYS), str(_TUNING), _processor())
    name = hashlib.blake2b("\0".join(made_of).encode(), digest_size=12).hexdigest() + ".so"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    folder = folder / "lm_eval_embednoise" / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK) and not (folder / name).exists():
            raise PermissionError
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="embednoise-kernels-"))
    if not (folder / name).exists():
        _compile(compiler, folder / name)
    return folder / name


def _compile(compiler: str, target: Path) -> None:
    """Compile into `target`, at once for whoever looks: several processes may do this together."""
    with tempfile.TemporaryDirectory(dir=target.parent) as place:
        made = Path(place) / target.name
        for tuning in _TUNING:
            line = [*compiler.split(), *_ALWAYS, *tuning, str(SOURCE), "-o", str(made), "-lm"]
            done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
            if not done.returncode:
                os.replace(made, target)
                return
    raise subprocess.SubprocessError(done.stderr.strip()[-500:])


def _processor() -> str:
    """What `-march=native` depends on: a shared home may serve different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return platform.machine() + "".join(sorted({x for x in lines if x.startswith(wanted)}))


def serve(*tensors: Tensor) -> bool:
    """Whether the functions below can be called with these."""
    for tensor in tensors:
        if tensor.dtype is not torch.float32 or not tensor.is_cpu:
            return False
    return library() is not None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) · weight over the last of [rows, dim]."""
    out = torch.empty_like(x)
    rows, dim = x.shape
    _lib().rms_norm(rows, dim, eps, x.data_ptr(), weight.data_ptr(), out.data_ptr())
    return out


def silu_product(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up of two contiguous tensors of one shape."""
    out = torch.empty_like(gate)
    _lib().silu_product(gate.numel(), gate.data_ptr(), up.data_ptr(), out.data_ptr())
    return out


def enter(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    write: Tensor,
    held: tuple[Tensor, Tensor],
) -> Tensor:
    """Rotate queries and keys to their positions and store keys and values.

    Args:
        q: [rows, heads · group · dim], the queries of a key head side by side.
        k, v: [rows, heads · dim].
        cos, sin: [rows, dim].
        write: int64 [rows], the column of each row's new entry.
        held: keys and values, [slots, heads, columns, dim], changed in place.

    Returns:
        The rotated queries, [rows, heads, group, dim].
    """
    rows = len(q)
    _, heads, columns, dim = held[0].shape
    group = q.shape[1] // (heads * dim)
    out = q.new_empty(rows, heads, group, dim)
    _lib().enter(
        *(rows, heads, group, dim, columns, q.data_ptr(), k.data_ptr(), v.data_ptr()),
        *(cos.data_ptr(), sin.data_ptr(), write.data_ptr()),
        *(held[0].data_ptr(), held[1].data_ptr(), out.data_ptr()),
    )
    return out


def attend(
    q: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    scale: float,
    prompt: tuple[Tensor, Tensor] | None = None,
    place: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention of each row's queries over its first entries and over a prompt.

    Args:
        q: [rows, heads, group, dim].
        key, value: [rows, heads, width, dim], views into memory of one shape.
        lengths: int64 [rows], how many entries a row sees.
        scale: factor on the scores.
        prompt: attention over the prompt and its log-sum-exps, [group, rows, heads, dim] and
            [group, rows, heads].
        place: int64 [rows], where each row stands in `prompt`; None for in order.

    Returns:
        [rows, heads, group, dim] and [rows, heads, group].

    Raises:
        MemoryError: the C function had none.
    """
    rows, heads, group, dim = q.shape
    q = q.contiguous()
    if prompt is not None:
        prompt = (prompt[0].contiguous(), prompt[1].contiguous())
    out, lse = torch.empty_like(q), q.new_empty(rows, heads, group)
    failed = _lib().attend(
        *(dim, rows, heads, group, key.stride(1) // dim, scale),
        *(q.data_ptr(), key.data_ptr(), value.data_ptr(), lengths.data_ptr()),
        None if place is None else place.data_ptr(),
        *((None, None) if prompt is None else (prompt[0].data_ptr(), prompt[1].data_ptr())),
        *(out.data_ptr(), lse.data_ptr()),
    )
    if failed:
        raise MemoryError("no memory for attention scores")
    return out, lse


def in_slots(key: Tensor, value: Tensor) -> bool:
    """Whether keys and values, [rows, heads, width, dim], lie in memory as `attend` reads them."""
    heads, dim = key.shape[1], key.shape[3]
    return (
        key.shape == value.shape
        and key.stride() == value.stride()
        and key.stride()[2:] == (dim, 1)
        and key.stride(0) == heads * key.stride(1)
    )


def _lib() -> ctypes.CDLL:
    found = library()
    assert found is not None
    return found
