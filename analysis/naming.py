"""What a method is called that brings no label: its settings in short."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_DEFAULTS: dict[str, Any] = {
    "sigma_unit": "relative", "sigma_reference": "site", "scope": "token", "positions": "prompt",
    "schedule": "constant", "rsp_slot": "after-prompt", "rsp_fit": "isotropic", "rsp_scale": 1.0,
}  # fmt: skip
PLAIN = {"top_p": 1.0, "top_k": 0, "min_p": 0.0}  # sampling arguments that change nothing
_WORDS = ("sigma_unit", "scope", "positions", "schedule")  # whose values speak for themselves


def label_of(perturbation: Mapping[str, Any], sampling: Mapping[str, Any]) -> str:
    """A label for a run that brings none: every setting that isn't the default, in short."""
    noise = _noise(perturbation)
    drawn = sampling.get("do_sample", bool(sampling.get("temperature")))
    if not drawn:
        return noise or "greedy"
    temperature = float(sampling.get("temperature", 1.0))
    top_p = sampling.get("top_p")
    label = f"temp-{temperature:g}"
    if top_p not in (None, 1.0):
        label = f"nucleus-{top_p:g}" if temperature == 1.0 else f"{label}-nucleus-{top_p:g}"
    for key in sorted(sampling):
        known = key in ("do_sample", "temperature", "top_p")
        if not known and sampling[key] not in (None, PLAIN.get(key)):
            label += f"-{key}-{sampling[key]}"
    return f"{noise}+{label}" if noise else label


def _noise(perturbation: Mapping[str, Any]) -> str:
    given = {k: v for k, v in perturbation.items() if v not in (None, 0, {}) and k != "seed"}
    sites = given.pop("sites", None) or {}
    sigma, depth = given.pop("sigma", None), given.pop("depth", "embed")
    if not sites and sigma:
        sites = {str(depth): sigma}
    parts = []
    doses = list(dict.fromkeys(sites.values()))
    named = [str(site).replace("block.", "block-") for site in sites]
    if len(doses) == 1:
        where = [] if named == ["embed"] else ["+".join(named)]
        parts.append("-".join([f"embednoise-{doses[0]:g}", *where]))
    elif doses:
        pairs = zip(named, sites.values(), strict=True)
        parts.append("embednoise-" + "+".join(f"{site}={dose:g}" for site, dose in pairs))
    rsp, prefix = given.pop("rsp", None), given.pop("prefix", None)
    parts += [f"rsp-{rsp}"] if rsp else []
    parts += [str(prefix).replace("random:", "prefix-")] if prefix else []
    rest = {k: v for k, v in given.items() if v != _DEFAULTS.get(k)}
    told = [str(v).replace(":", "-") if k in _WORDS else f"{k}={v}" for k, v in rest.items()]
    if not told:
        return "+".join(parts)
    head, *others = parts or ["noise"]
    return "+".join(["-".join([head, *told]), *others])
