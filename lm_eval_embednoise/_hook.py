"""The import hook: lets lm_eval_embednoise.plugin act right after lm_eval's own modules load.

The installed `.pth` file (build_backend.py) imports the package at the first import of lm_eval;
this module then puts one object on sys.meta_path. It imports nothing beyond the interpreter's own
and never lets an exception through to the user's import.
"""

import sys

# The modules of lm_eval after whose import the plug-in has something to add.
WATCHED = (
    "lm_eval.models",
    "lm_eval.tasks.manager",
    "lm_eval.evaluator_utils",
    "lm_eval.evaluator",
    "lm_eval.config.evaluate_config",
    "lm_eval.loggers.evaluation_tracker",
)


class _Finder:
    """A meta-path finder that finds nothing itself: it wraps a watched module's real loader."""

    def find_spec(self, name, path=None, target=None):
        if name not in WATCHED:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    _call_after_exec(spec.loader, name)
                return spec
        return None


def _call_after_exec(loader, name):
    """Make `loader.exec_module` tell the plug-in once the module's own code has run."""
    exec_module = loader.exec_module

    def exec_and_tell(module):
        exec_module(module)
        _tell(name)

    loader.exec_module = exec_and_tell


def _tell(name):
    """Let the plug-in extend a module; a failure is logged and never reaches the user."""
    try:
        from lm_eval_embednoise import plugin

        plugin.extend(name)
    except Exception:
        import logging

        logging.getLogger("lm_eval_embednoise").warning(
            "could not extend %s; run `embednoise doctor`", name, exc_info=True
        )


def install():
    """Watch for lm_eval's modules, and extend at once those that are loaded already. Idempotent."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
        for name in WATCHED:
            module = sys.modules.get(name)
            if module is not None and not _is_loading(module):
                _tell(name)


def _is_loading(module):
    return getattr(getattr(module, "__spec__", None), "_initializing", False)
