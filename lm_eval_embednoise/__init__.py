"""Input noise at inference instead of temperature, measured through lm-evaluation-harness.

Importing the package makes the model `hf-embednoise` and the tasks known to lm_eval; nothing heavy
is imported until it is used.
"""

from lm_eval_embednoise import _hook

__version__ = "0.2.0"

# Public names and where they live; resolved on first use so that the import stays instant.
_LAZY = {
    "Generation": "lm_eval_embednoise.store.generation",
    "Perturbation": "lm_eval_embednoise.noise.perturbation",
    "Sampling": "lm_eval_embednoise.engine.sampling",
    "ByPrompt": "lm_eval_embednoise.noise.context",
    "perturbed": "lm_eval_embednoise.noise.context",
}
__all__ = ["ByPrompt", "Generation", "Perturbation", "Sampling", "__version__", "perturbed"]

_hook.install()


def __getattr__(name: str) -> object:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
