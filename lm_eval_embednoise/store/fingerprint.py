"""Fingerprints: a few bytes that tell two sets of weights, or two tokenizers, apart.

A folder's fingerprint is a hash over the files that make a model what it is (weights, config,
remote code), by name: not over path, date or owner, so a copied folder is the same model. Files up
to 16 MiB are read whole. Of a larger safetensors file, its header (names, types, shapes, places)
and 4 KiB at the beginning, middle and end of every tensor are read; of another large file, 256
blocks of 4 KiB at equal distances. So a fingerprint reads megabytes, not gigabytes, and any
training, merging or quantization shows; an edit of a few numbers between the blocks does not.
"""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

WHOLE = 16 << 20
BLOCK = 4096
BLOCKS = 256
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_OTHERS = ("config.json", "adapter_config.json", "quantize_config.json")


def of_folder(folder: str | Path) -> str:
    """32 hexadecimal digits for the model in a local folder.

    Raises:
        ValueError: there are no weights in it.
    """
    folder = Path(folder)
    files = sorted(
        path
        for path in folder.iterdir()
        if path.suffix in (*_WEIGHTS, ".py") or path.name in _OTHERS
    )
    if not any(path.suffix in _WEIGHTS for path in files):
        raise ValueError(f"{folder} holds no weights ({', '.join(_WEIGHTS)})")
    hasher = blake2b(digest_size=16)
    for path in files:
        hasher.update(json.dumps([path.name, path.stat().st_size, _content(path)]).encode())
    return hasher.hexdigest()


def of_file(path: str | Path) -> str:
    """32 hexadecimal digits for a file that is a whole model (GGUF), whatever its name."""
    path = Path(path)
    said = json.dumps([path.stat().st_size, _content(path)])
    return blake2b(said.encode(), digest_size=16).hexdigest()


def _content(path: Path) -> str:
    content = blake2b(digest_size=16)
    with path.open("rb") as file:
        for part in _parts(file, path.stat().st_size, path.suffix):
            content.update(part)
    return content.hexdigest()


def _parts(file: BinaryIO, size: int, suffix: str) -> Iterator[bytes]:
    if size <= WHOLE:
        yield file.read()
        return
    places = [round(i * (size - BLOCK) / (BLOCKS - 1)) for i in range(BLOCKS)]
    if suffix == ".safetensors":
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length)
        yield header
        tensors = (v for k, v in json.loads(header).items() if k != "__metadata__")
        places = []
        for begin, end in sorted(tuple(tensor["data_offsets"]) for tensor in tensors):
            last = max(begin, end - BLOCK)
            places += [8 + length + at for at in (begin, (begin + last) // 2, last)]
    for place in places:
        file.seek(place)
        yield file.read(BLOCK)


def of_tokenizer(tokenizer: Any) -> str:
    """32 hexadecimal digits for a tokenizer: its rules where they can be read, else its words."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        for state in ("truncation", "padding"):  # changed by every call
            rules.pop(state, None)
    else:
        rules = sorted(tokenizer.get_vocab().items())
    said = [type(tokenizer).__name__, rules]
    return blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=16).hexdigest()


def of_config(config: Any) -> str:
    """32 hexadecimal digits for a model's configuration: what its forward pass is made of."""
    content = {key: value for key, value in config.to_dict().items() if not key.startswith("_")}
    for name in ("transformers_version", "use_cache", "output_hidden_states", "output_attentions"):
        content.pop(name, None)
    text = json.dumps(content, sort_keys=True, default=str)
    return blake2b(text.encode(), digest_size=16).hexdigest()


def of_model(model: Any) -> str:
    """32 hexadecimal digits for a model in memory: names, shapes and samples of its parameters.

    Of a parameter that is offloaded to disk, its name and shape.
    """
    hasher = blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        step = max(1, len(flat) // BLOCKS)
        some = [] if tensor.is_meta else flat[::step].float().cpu().tolist()
        hasher.update(json.dumps([name, list(tensor.shape), str(tensor.dtype), some]).encode())
    return hasher.hexdigest()
