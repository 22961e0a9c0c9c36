"""The import hook: lets lm_eval_embednoise.plugin act right after lm_eval's own modules load.

The installed `.pth` file (build_backend.py) imports the package at the first import of lm_eval;
this module then puts one object on sys.meta_path. It imports nothing beyond the interpreter's own
and never lets an exception through to the user's import.
"""

import os
import sys

# What decides how OpenMP's threads wait for each other; a user who set one of them has decided.
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
WAITS = ("GOMP_SPINCOUNT", "10000")  # looks before a thread sleeps: some 0.1 ms
waiting = "not set"  # who decided, as wait_shortly() saw it

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
        if name.startswith("lm_eval."):
            wait_shortly()
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


def wait_shortly():
    """Let OpenMP's threads soon sleep when they wait for each other, here and in child processes.

    By default they spin for milliseconds, and where other work shares the processors they spin for
    threads that aren't running: a run can take ten times as long. Nothing is changed for a user who
    has set one of WAITING. OpenMP reads them when it is loaded, with torch. Idempotent.
    """
    global waiting
    if waiting != "not set":
        return
    if any(name in os.environ for name in WAITING):
        waiting = "the user's"
        return
    os.environ[WAITS[0]] = WAITS[1]
    waiting = "too late" if "torch" in sys.modules else "ours"


def install():
    """Watch for lm_eval's modules, and extend at once those that are loaded already. Idempotent."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
        if "lm_eval" in sys.modules:
            wait_shortly()
        for name in WATCHED:
            module = sys.modules.get(name)
            if module is not None and not _is_loading(module):
                _tell(name)


def _is_loading(module):
    return getattr(getattr(module, "__spec__", None), "_initializing", False)
