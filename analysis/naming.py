"""Labels of methods that come without one: their settings in short."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_DEFAULTS: dict[str, Any] = {
    "sigma_unit": "relative", "sigma_reference": "site", "scope": "token", "positions": "prompt",
    "schedule": "constant", "noise_law": "gaussian", "rsp_slot": "auto", "rsp_fit": "isotropic",
    "rsp_scale": 1.0, "attention_temperature": 1.0,
}  # fmt: skip
PLAIN = {  # sampling arguments that change nothing
    "top_p": 1.0, "top_k": 0, "min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0, "top_n_sigma": 0.0, "p_less": False,
}  # fmt: skip
_WORDS = ("sigma_unit", "scope", "positions", "schedule", "noise_law")  # whose values need no name


def label_of(perturbation: Mapping[str, Any], sampling: Mapping[str, Any]) -> str:
    """A label from every setting that isn't the default, such as `embednoise-0.1+temp-0.8`.

    Args:
        perturbation: in its canonical form.
        sampling: generation arguments of the harness.
    """
    noise = _noise(perturbation)
    drawn = sampling.get("do_sample", bool(sampling.get("temperature")))
    first = str(sampling.get("first_token") or "").replace(":", "-")
    if not drawn:
        return "+".join(part for part in (noise, first) if part) or "greedy"
    temperature = float(sampling.get("temperature", 1.0))
    top_p = sampling.get("top_p")
    label = f"temp-{temperature:g}"
    if top_p not in (None, 1.0):
        label = f"nucleus-{top_p:g}" if temperature == 1.0 else f"{label}-nucleus-{top_p:g}"
    for key in sorted(sampling):
        known = key in ("do_sample", "temperature", "top_p", "first_token")
        if not known and sampling[key] not in (None, PLAIN.get(key)):
            label += f"-{key}" if sampling[key] is True else f"-{key}-{sampling[key]}"
    return "+".join(part for part in (noise, label, first) if part)


def _noise(perturbation: Mapping[str, Any]) -> str:
    given = {k: v for k, v in perturbation.items() if v not in (None, 0, {}) and k != "seed"}
    sites = given.pop("sites", None) or {}
    sigma, depth = given.pop("sigma", None), given.pop("depth", "embed")
    if not sites and sigma:
        sites = {str(depth): sigma}
    parts = []
    doses = list(dict.fromkeys(sites.values()))
    named = [str(site).replace(".", "-") for site in sites]
    if len(doses) == 1:
        where = [] if named == ["embed"] else ["+".join(named)]
        parts.append("-".join([f"embednoise-{doses[0]:g}", *where]))
    elif doses:
        pairs = zip(named, sites.values(), strict=True)
        parts.append("embednoise-" + "+".join(f"{site}={dose:g}" for site, dose in pairs))
    cooled = given.pop("attention_temperature", 1.0)
    parts += [f"attention-temp-{cooled:g}"] if cooled != 1 else []
    shaken = given.pop("weight_sigma", None)
    parts += [f"weight-noise-{shaken:g}"] if shaken else []
    rsp, prefix = given.pop("rsp", None), given.pop("prefix", None)
    parts += [f"rsp-{rsp}"] if rsp else []
    parts += [_prefix(str(prefix))] if prefix else []
    rest = {k: v for k, v in given.items() if v != _DEFAULTS.get(k)}
    settings = [_setting(k, v) for k, v in rest.items()]
    if not settings:
        return "+".join(parts)
    first, *others = parts or ["noise"]
    return "+".join(["-".join([first, *settings]), *others])


def _setting(key: str, value: Any) -> str:
    if value is True:
        return key
    return str(value).replace(":", "-") if key in _WORDS else f"{key}={value}"


def _prefix(prefix: str) -> str:
    """`prefix-10` for ten random characters, `prefix-lorem-10` for ten words."""
    return f"prefix-{prefix.removeprefix('random:').replace(':', '-')}"
