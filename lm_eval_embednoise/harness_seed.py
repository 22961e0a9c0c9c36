"""The harness's `--seed`, handed on to the model: its torch seed is the root of all draws.

`simple_evaluate` seeds Python, numpy, torch and the few-shot sampler, and tells the model nothing.
Our draws come from no global generator, so the seed is passed on here, for as long as one call of
`simple_evaluate` lasts. A `seed=` among the model's own arguments comes first.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

log = logging.getLogger(f"lm_eval.{__name__}")

NAMES = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
_present: contextvars.ContextVar[int | None] = contextvars.ContextVar("harness seed", default=None)


def present() -> int | None:
    """The seed that the evaluation under way was given; None outside one, or if none was given."""
    return _present.get()


def chosen(seeds: Mapping[str, int | None], defaults: Mapping[str, int | None]) -> int | None:
    """The torch seed, if the user chose it.

    The command passes its defaults on like a choice, so what is equal to the default is none,
    unless all four are the same number, as `--seed N` makes them.
    """
    seed = seeds.get("torch_random_seed")
    everywhere = len(set(seeds.values())) == 1
    return seed if everywhere or seed != defaults.get("torch_random_seed") else None


def passed_on(simple_evaluate: Callable[..., Any]) -> Callable[..., Any]:
    """The harness's `simple_evaluate`, and the model it makes can see the seed."""
    signature = inspect.signature(simple_evaluate)
    known = [name for name in NAMES if name in signature.parameters]
    defaults = {name: signature.parameters[name].default for name in known}

    @functools.wraps(simple_evaluate)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind_partial(*args, **kwargs).arguments
        seed = chosen({name: given.get(name, defaults[name]) for name in known}, defaults)
        loaded = getattr(given.get("model"), "perturbation", None)
        if seed is not None and loaded is not None and loaded.seed != seed:
            log.warning(
                "torch_random_seed=%d changes nothing: the model is loaded already, and its own "
                "seed=%d is the root of all draws; give seed=%d to the model instead",
                *(seed, loaded.seed, seed),
            )
        token = _present.set(seed)
        try:
            return simple_evaluate(*args, **kwargs)
        finally:
            _present.reset(token)

    return wrapped


def announce(seed: int) -> None:
    """Say which seed counts."""
    harness = present()
    if harness is None:
        log.info("seed=%d is the root of all draws", seed)
    elif harness == seed:
        log.info("seed=%d, the harness's --seed, is the root of all draws", seed)
    else:
        log.info(
            "seed=%d of the model's arguments is the root of all draws; the harness's --seed, %d, "
            "is not",
            *(seed, harness),
        )
