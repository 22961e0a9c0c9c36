"""Checks once a model's files are read: errors in one line, tokenizer, PEFT, offload, defaults."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(f"lm_eval.{__name__}")

_BEFORE = "x:\n"
_LINES = (
    "    return x\n",
    "\tif x:\n\t\treturn [x]\n\n\n",
    "  a  b \n",
    "print(\"it's\", 'X' , `y`) ; z != 1 ?\n",
    "naïve λ → 日本語 😀 “x”\n",
)


@contextmanager
def one_line(what: str, kind: type[Exception] = OSError) -> Iterator[None]:
    """Turn what transformers and the hub say about a file into one ValueError.

    Args:
        what: the argument, or the file, that names it.
        kind: of errors; those about a missing file by default.
    """
    try:
        yield
    except kind as error:
        first = " ".join((str(error) or type(error).__name__).split())
        raise ValueError(f"{what} can't be read: {first}") from None


def check_tokenizer(tokenizer: Any, config: Any, name: str) -> None:
    """Refuse a tokenizer that can't serve generation; warn of another model's, or one that garbles.

    Raises:
        ValueError: its files are missing, or it has neither an end token nor a start token.
    """
    if not tokenizer.encode("a", add_special_tokens=False):  # transformers makes an empty one
        raise ValueError(f"{name} knows no text: its files are missing; give tokenizer=NAME")
    if tokenizer.eos_token_id is None and tokenizer.bos_token_id is None:
        raise ValueError(
            f"{name} has neither an end token nor a start token; give tokenizer=NAME with one"
        )
    rows = getattr(config.get_text_config(), "vocab_size", None)
    highest = max(tokenizer.get_vocab().values(), default=0)
    if rows and highest >= rows:
        log.warning(
            "%s has ids up to %d and the model's embedding only %d rows: is it this model's?",
            name,
            highest,
            rows,
        )
    lost = garbled(tokenizer)
    if lost is not None:
        log.warning(
            "%s garbles text: %r comes back as %r after encoding and decoding, so prompts and "
            "samples are not what they seem",
            name,
            *lost,
        )


def garbled(tokenizer: Any) -> tuple[str, str] | None:
    """A line of text or code that encoding and decoding change, and what comes back of it.

    Each follows another line, as a sample follows its prompt: what some tokenizers
    do to the blanks at the very beginning of a text doesn't matter.
    """
    for line in _LINES:
        try:
            ids = tokenizer.encode(_BEFORE + line, add_special_tokens=False)
            text = str(
                tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            )
        except Exception as error:  # a tokenizer of anybody's code; it is only looked at here
            return line, f"{type(error).__name__}: {error}"
        if text != _BEFORE + line:
            return line, text.removeprefix(_BEFORE)
    return None


def without_wrapper(model: Any) -> Any:
    """The model inside a PEFT wrapper: its adapters sit in the layers and stay active.

    Raises:
        ValueError: see `check_adapter`.
    """
    if not hasattr(model, "peft_config"):
        return model
    check_adapter(model.active_peft_config)
    return model.get_base_model()


def check_adapter(config: Any) -> None:
    """Refuse an adapter (its PEFT configuration) that is more than layers.

    Raises:
        ValueError: it adds vectors to the input, which is the wrapper's doing.
    """
    if config.is_prompt_learning:
        raise ValueError(
            f"peft: {config.peft_type.value} adapters add input vectors of their own, which would "
            "shift the perturbed positions; hf-embednoise takes adapters that live in the layers, "
            "such as LoRA"
        )


def check_embedding(model: Any) -> None:
    """Refuse a device map that leaves the embedding on no device.

    Raises:
        ValueError: it is offloaded.
    """
    if model.get_input_embeddings().weight.is_meta:
        raise ValueError(
            "the input embedding is offloaded, and noise is scaled and prompts are placed by it; "
            "give it a device in device_map"
        )


# Entries of a generation_config that change no text: ids (end tokens are taken over), limits, and
# do_sample, that the harness gives, bookkeeping, caches, and what only speeds up.
_NO_CHOICE = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("max_length", "max_new_tokens", "max_time", "do_sample", "num_return_sequences"),
    *("transformers_version", "return_dict_in_generate", "use_cache", "cache_implementation"),
    *("cache_config", "max_cache_len", "compile_config", "disable_compile", "low_memory"),
    *("continuous_batching_config", "prefill_chunk_size", "use_mtp", "is_assistant"),
    *("output_attentions", "output_hidden_states", "output_logits", "output_scores"),
)
_ONLY_DRAWN = (  # without effect on greedy decoding
    *("temperature", "top_k", "top_p", "min_p", "top_h"),
    *("typical_p", "epsilon_cutoff", "eta_cutoff"),
)
_NEUTRAL_ONE = (
    *("temperature", "top_p", "typical_p", "repetition_penalty", "encoder_repetition_penalty"),
    *("length_penalty", "num_beams", "num_beam_groups", "guidance_scale"),
)


def not_applied(generation_config: Any) -> str | None:
    """In words, which of the model's own generation settings are not applied; None if it has none.

    Unknown entries are named too, so that a new one isn't silently left out.

    Args:
        generation_config: of the model (transformers' GenerationConfig), or None.
    """
    if generation_config is None:
        return None
    greedy: list[str] = []
    drawn: list[str] = []
    for name, value in sorted(generation_config.to_diff_dict().items()):
        neutral = not value or (name in _NEUTRAL_ONE and value == 1)
        if not (neutral or name in _NO_CHOICE or name.startswith(("_", "assistant_", "num_ass"))):
            (drawn if name in _ONLY_DRAWN else greedy).append(f"{name}={value!r}")
    parts = []
    if greedy:
        parts.append(f"{', '.join(greedy)} (--model hf applies it, so its texts differ from σ = 0)")
    if drawn:
        parts.append(f"{', '.join(drawn)} (give temperature, top_p, … by --gen_kwargs)")
    if not parts:
        return None
    return f"of the model's generation_config these are not applied: {'; '.join(parts)}"
