"""One sample as a model returns it: its text and its measurements."""

from __future__ import annotations

from typing import Any

FIELDS = (
    *("sample_index", "tokens", "finish_reason", "nll", "nll_tokens", "rho", "sites", "seconds"),
    "form",
)
MISSING = "missing"  # the finish reason of a sample that isn't there


class Generation(str):
    """A generated text that is a plain `str` to the harness and carries its own measurements.

    Attributes:
        sample_index: which of the problem's K samples this is, from 0.
        tokens: number of generated tokens, end token and stop string excluded.
        finish_reason: "end_token", "stop_string", "length", "prompt_too_long", or "numeric" (the
            logits were not numbers); "missing" for a sample that `replay` doesn't have.
        nll: summed negative log-likelihood of those tokens under the clean model, in nats; None
            where it is undefined.
        nll_tokens: how many tokens `nll` sums over.
        rho: measured ‖ε‖/‖h‖, mean over the perturbed positions (the largest over several sites).
        sites: site → {"rho": its ρ, "std": its noise's standard deviation per coordinate}.
        seconds: this sample's share of the generation time.
        form: None for a model's answer, in which the program must be found; `program` for a
            finished one, `completion` for what follows the prompt in one: judged to the letter.
    """

    __slots__ = FIELDS

    sample_index: int | None
    tokens: int | None
    finish_reason: str | None
    nll: float | None
    nll_tokens: int | None
    rho: float | None
    sites: dict[str, dict[str, float]] | None
    seconds: float | None
    form: str | None

    def __new__(cls, text: str = "", **measurements: Any) -> Generation:
        unknown = set(measurements) - set(FIELDS)
        if unknown:
            raise TypeError(f"unknown field {sorted(unknown)}; a Generation has {list(FIELDS)}")
        self = super().__new__(cls, text)
        for field in FIELDS:
            setattr(self, field, measurements.get(field))
        return self

    def measurements(self) -> dict[str, Any]:
        """The fields as a dict, None where unknown."""
        return {field: getattr(self, field) for field in FIELDS}

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (str(self), self.measurements())


def _rebuild(text: str, measurements: dict[str, Any]) -> Generation:
    return Generation(text, **measurements)
