"""How the model is loaded: which arguments reach it, checked before anything is read.

The harness's `hf` model takes more arguments than it serves: quantization raises TypeError with
transformers 5, `device_map` alone is dropped. What hf-embednoise serves goes the working way here,
and what it can't serve is refused by name.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from lm_eval_embednoise.models import gguf_file
from lm_eval_embednoise.noise.perturbation import suggest

log = logging.getLogger(f"lm_eval.{__name__}")

QUANTIZATIONS = ("int8", "int4")
ATTENTIONS = (
    "eager",
    "sdpa",
    "flash_attention_2",
    "flash_attention_3",
)
DTYPES = ("auto", "float16", "bfloat16", "float32", "float64")

# What the harness's class takes by name.
HOST_ARGS = tuple(
    name for name in inspect.signature(HFLM.__init__).parameters if name not in ("self", "kwargs")
)
# What reaches transformers' from_pretrained; anything else there would be swallowed silently.
LOADING_ARGS = (
    "quantization",
    "attn_implementation",
    "device_map",
    "cache_dir",
    "local_files_only",
    "token",
    "use_safetensors",
)
# Where the key of a stored sample (models/stored.py) holds an argument in another form than by name
# and value: as what is loaded, or as the prompt that comes of it.
IN_KEY_AS = {
    **dict.fromkeys(("pretrained", "revision", "subfolder", "gguf_file"), "model"),
    "peft": "peft",
    "delta": "delta",
    **dict.fromkeys(("tokenizer", "use_fast_tokenizer"), "tokenizer"),
    "dtype": "dtype",
    "quantization": "quantization",
    "max_length": "max_length",
    "think_end_token": "think_end_token",
    **dict.fromkeys(("truncation", "add_bos_token", "prefix_token_id"), "prompt"),
    **dict.fromkeys(("enable_thinking", "chat_template_args", "template_date"), "prompt"),
    **dict.fromkeys(("blocks", "states"), "perturbation"),
    "exact": "exact",
}
_PLACES = (
    *("device", "device_map", "parallelize", "tp_plan"),
    *("max_memory_per_gpu", "max_cpu_memory", "offload_folder"),
)
# Arguments that are in no key, and why a sample doesn't depend on them. Every other argument of the
# harness's class and of from_pretrained is in the key by name and value, also one that is new.
NOT_IN_KEY = {
    "backend": "only causal models are served",
    **dict.fromkeys(("batch_size", "max_batch_size"), "samples don't depend on their company"),
    **dict.fromkeys(_PLACES, "where the same numbers are computed"),
    **dict.fromkeys(
        ("attn_implementation", "compile", "decoder"), "which kernel computes the same numbers"
    ),
    **dict.fromkeys(("cache_dir", "local_files_only", "token"), "how the same files are reached"),
    **dict.fromkeys(("logits_cache", "softmax_dtype"), "loglikelihood requests, never stored"),
    **dict.fromkeys(("method", "perplexity", "store"), "what is done with a sample"),
}
# What users of the stock class write, and what does the same here.
INSTEAD = {
    "load_in_8bit": "quantization=int8",
    "load_in_4bit": "quantization=int4",
    "quantization_config": "quantization=int8 or int4",
    "torch_dtype": "dtype",
    "use_flash_attention_2": "attn_implementation=flash_attention_2",
    "mixed_precision_dtype": "dtype=bfloat16 or float16",
}
# Each pair of arguments that can't both be given, and why.
CONTRADICTIONS = (
    ("quantization", "gguf_file", "a GGUF file is quantized already"),
    ("quantization", "autogptq", "a GPTQ checkpoint is quantized already"),
    ("quantization", "gptqmodel", "a GPTQ checkpoint is quantized already"),
    ("quantization", "delta", "delta weights can't be added to quantized ones"),
    ("quantization", "tp_plan", "bitsandbytes weights can't be split by a tensor-parallel plan"),
    ("autogptq", "gptqmodel", "they load the same checkpoint in two ways"),
    ("peft", "delta", "an adapter and delta weights can't be combined"),
    ("tp_plan", "parallelize", "one splits each weight, the other places whole blocks"),
    ("tp_plan", "device_map", "one splits each weight, the other places whole blocks"),
    ("device_map", "device", "device_map says where each part of the model goes"),
    ("parallelize", "device", "the model is spread over all visible GPUs"),
)


@dataclass(frozen=True)
class Loading:
    """The loading arguments of one model, checked against each other when built.

    Attributes:
        pretrained: a folder, a name on the hub, a GGUF file or the name of a packaged one, or a
            model that is loaded already.
        quantization: `int8` or `int4` through bitsandbytes, or None.
        attn_implementation: one of ATTENTIONS, a kernel of the hub (`owner/name`), or None for the
            model's default.
        dtype: of the weights (int8, int4: of what isn't quantized); one of DTYPES.
        parallelize: spread one model over all visible GPUs; a `device_map` implies it.
        rest: every other argument of the harness's class, as given.
        gguf: the local GGUF file that `pretrained` (with `gguf_file`) names, or None.

    Raises:
        ValueError: for a value or combination that can't be served.
        ImportError: with the install line, for a package that is missing.
    """

    pretrained: Any
    quantization: str | None = None
    attn_implementation: str | None = None
    dtype: str = "auto"
    parallelize: bool = False
    rest: Mapping[str, Any] = field(default_factory=dict)
    gguf: Path | None = field(init=False, default=None)

    @classmethod
    def from_args(cls, pretrained: Any, args: Mapping[str, Any]) -> Loading:
        """Build from the model's arguments; None is the same as leaving one out."""
        given = {name: value for name, value in args.items() if value is not None}
        for name, instead in INSTEAD.items():
            if name in given:
                raise ValueError(f"{name}={given[name]!r} is not supported; use {instead}")
        parallelize = _flag("parallelize", given.pop("parallelize", False))
        return cls(
            pretrained,
            quantization=given.pop("quantization", None),
            attn_implementation=given.pop("attn_implementation", None),
            dtype=str(given.pop("dtype", "auto")).removeprefix("torch."),
            parallelize=parallelize or "device_map" in given,  # alone the host would drop it
            rest=given,
        )

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_combinations()
        self._check_packages()
        self._check_device()
        found = gguf_file.find(
            self.pretrained, self.rest.get("gguf_file"), self.rest.get("subfolder")
        )
        object.__setattr__(self, "gguf", found)
        self._check_paths()

    def _check_choices(self) -> None:
        if self.quantization is not None and self.quantization not in QUANTIZATIONS:
            raise ValueError(
                f"quantization={self.quantization!r} is not known; "
                f"{suggest(str(self.quantization), QUANTIZATIONS)}"
                f"allowed: {', '.join(QUANTIZATIONS)}"
            )
        if self.dtype not in DTYPES:
            raise ValueError(
                f"dtype={self.dtype!r} is not known; {suggest(self.dtype, DTYPES)}"
                f"allowed: {', '.join(DTYPES)}"
            )
        attention = self.attn_implementation
        if attention == "flex_attention":
            raise ValueError(
                "attn_implementation='flex_attention' compiles a kernel for every mask, and the "
                f"sampler's rows change at every step; allowed: {', '.join(ATTENTIONS)}"
            )
        if attention is not None and attention not in ATTENTIONS and "/" not in str(attention):
            raise ValueError(
                f"attn_implementation={attention!r} is not known; "
                f"{suggest(str(attention), ATTENTIONS)}allowed: {', '.join(ATTENTIONS)}, or a "
                "kernel of the hub as OWNER/NAME"
            )
        for name in ("max_length", "max_batch_size"):
            value = self.rest.get(name)
            if value is not None and not re.fullmatch(r"[1-9]\d*", str(value)):
                raise ValueError(f"{name}={value!r} is not allowed; it must be a whole number ≥ 1")

    def _check_combinations(self) -> None:
        given = {
            **self.rest,
            "gguf_file": self._gguf_name,
            "quantization": self.quantization,
            "parallelize": self.parallelize,
        }
        for one, other, why in CONTRADICTIONS:
            if given.get(one) and given.get(other):
                if one == "parallelize" and given.get("device_map"):
                    continue  # the pair with device_map says it better
                raise ValueError(
                    f"{one}={given[one]!r} and {other}={given[other]!r} contradict each other: "
                    f"{why}; leave one out"
                )
        if self.flash and self.dtype in ("float32", "float64"):
            raise ValueError(
                f"attn_implementation={self.attn_implementation!r} can't run in "
                f"dtype={self.dtype!r}; use dtype=float16 or bfloat16"
            )
        if not isinstance(self.pretrained, str):
            taken = [
                name
                for name, value in {
                    **given,
                    "attn_implementation": self.attn_implementation,
                    "dtype": None if self.dtype == "auto" else self.dtype,
                }.items()
                if value and name in (*LOADING_ARGS, "parallelize", "dtype", "peft", "delta")
            ]
            if taken:
                raise ValueError(
                    f"{taken[0]} has no effect on a model that is loaded already; load it so, or "
                    "give pretrained=NAME"
                )

    def _check_packages(self) -> None:
        if self.quantization:
            need("bitsandbytes", f"quantization={self.quantization}", _extra("quant"))
        if self.rest.get("peft"):
            need("peft", f"peft={self.rest['peft']}", _extra("peft"))
        if self._gguf_name:
            need("gguf", f"the GGUF file {self._gguf_name}", _extra("gguf"))
        if self.flash and importlib.util.find_spec("kernels") is None:
            package, install = _FLASH[str(self.attn_implementation)]
            need(package, f"attn_implementation={self.attn_implementation}", install)
        if self.attn_implementation and "/" in self.attn_implementation:
            need(
                "kernels", f"attn_implementation={self.attn_implementation}", "pip install kernels"
            )

    def _check_device(self) -> None:
        no_gpu = not torch.accelerator.is_available()
        if self.flash and (no_gpu or str(self.rest.get("device")) == "cpu"):
            raise ValueError(
                f"attn_implementation={self.attn_implementation!r} needs a GPU; on a CPU use "
                "sdpa or eager"
            )

        spread = str(self.rest.get("device_map", "auto")) in _SPREADING
        if self.parallelize and spread and no_gpu:
            name = "device_map" if "device_map" in self.rest else "parallelize"
            raise ValueError(
                f"{name}={self.rest.get('device_map', True)!r} spreads the model over GPUs, and "
                "PyTorch sees none; leave it out"
            )

    def _check_paths(self) -> None:
        for name, value, needed in (
            ("pretrained", self.pretrained, "config.json"),
            ("tokenizer", self.rest.get("tokenizer"), None),
            ("peft", self.rest.get("peft"), "adapter_config.json"),
            ("delta", self.rest.get("delta"), "config.json"),
        ):
            if not isinstance(value, str):
                continue
            folder = Path(value)
            if name == "pretrained" and self.gguf:
                continue
            if folder.is_dir():
                inside = folder / str(self.rest.get("subfolder") or "")
                if needed and not (inside / needed).is_file():
                    files = sorted(inside.glob(f"*{gguf_file.SUFFIX}"))
                    raise ValueError(
                        f"{name}={value!r} is a folder without {needed}"
                        + (f"; for its GGUF file give {name}={files[0]}" if files else "")
                    )
            elif folder.exists() or value.startswith((".", "/", "~")) or value.count("/") > 1:
                raise ValueError(f"{name}={value!r} is no folder (from {Path.cwd()})")

    @property
    def _gguf_name(self) -> str | None:
        """The GGUF file as the arguments name it, before anybody has looked for it."""
        named = self.pretrained if gguf_file.is_named(self.pretrained) else None
        return named or self.rest.get("gguf_file")

    @property
    def flash(self) -> bool:
        """Whether the attention is a FlashAttention package's."""
        return str(self.attn_implementation) in _FLASH

    def host_args(self, copy: Path | None = None) -> dict[str, Any]:
        """The arguments of the harness's class; `quantization` isn't among them.

        Args:
            copy: folder with the content of the GGUF file, to be loaded in its place.
        """
        args = {"pretrained": self.pretrained, **self.rest, "dtype": self.dtype}
        args["parallelize"] = self.parallelize
        if self.gguf is not None:
            folder, name = (self.gguf.parent, self.gguf.name) if copy is None else (copy, None)
            args |= {"pretrained": str(folder), "gguf_file": name, "subfolder": ""}
        if self.attn_implementation:
            args["attn_implementation"] = self.attn_implementation
        args.setdefault("device", "cuda" if torch.cuda.is_available() else "cpu")
        return args

    def quantization_config(self, config: Any) -> Any:
        """The BitsAndBytesConfig of transformers, or None.

        Args:
            config: the model's, which says its dtype.

        Raises:
            ValueError: for a checkpoint that is quantized already.
        """
        stored = getattr(config, "quantization_config", None)
        kind = stored.get("quant_method") if isinstance(stored, Mapping) else stored
        if self.quantization == "int8" or kind == "bitsandbytes":
            # Says at every layer of every pass that inputs are rounded to float16.
            logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        if self.quantization is None:
            return None
        if stored is not None:
            raise ValueError(
                f"quantization={self.quantization!r}: {self.pretrained} is quantized already "
                f"({kind}); leave quantization out"
            )
        from transformers import BitsAndBytesConfig

        if self.quantization == "int8":
            log.info("int8: the inputs of quantized layers are rounded to float16")
            return BitsAndBytesConfig(load_in_8bit=True)
        dtype = config.dtype if self.dtype == "auto" else getattr(torch, self.dtype)
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )

    def canonical(self) -> dict[str, Any]:
        """What of the loading can change a sample, as the user wrote it."""
        given = {
            name: value if isinstance(value, (bool, int, float, dict)) else str(value)
            for name, value in self.rest.items()
            if name not in NOT_IN_KEY and value != _default(name)
        }
        return {
            "dtype": self.dtype,
            "quantization": self.quantization,
            "attn_implementation": self.attn_implementation,
            **given,
        }


def keyed(args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that are in a sample's key by name and value; a default is left out.

    Args:
        args: of the harness's class and of from_pretrained, as given; others are passed over.
    """
    named = {
        name: value
        for name, value in args.items()
        if name in (*HOST_ARGS, *LOADING_ARGS)
        and name not in (*IN_KEY_AS, *NOT_IN_KEY)
        and value not in (None, _default(name))
    }
    return {name: named[name] for name in sorted(named)}


def _default(name: str) -> Any:
    parameter = inspect.signature(HFLM.__init__).parameters.get(name)
    return None if parameter is None else parameter.default


_SPREADING = ("auto", "balanced", "balanced_low_0", "sequential")
_FLASH = {
    "flash_attention_2": ("flash_attn", 'pip install "lm-eval-embednoise[flash]"'),
    "flash_attention_3": ("flash_attn_interface", "pip install kernels"),
}


def _extra(name: str) -> str:
    return f'pip install "lm-eval-embednoise[{name}]"'


def need(package: str, argument: str, install: str) -> None:
    """Refuse an argument whose package is missing.

    Raises:
        ImportError: naming the argument, the package and the line that installs it.
    """
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"{argument} needs the package {package}, which is missing: {install}")


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} must be true or false")
    return value
