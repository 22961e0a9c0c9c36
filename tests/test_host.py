"""The patches of lm_eval: each in place once, and a name that is missing said with what is lost."""

from __future__ import annotations

import importlib
import logging
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lm_eval_embednoise import _hook, host, plugin

EACH = pytest.mark.parametrize("patch", host.PATCHES, ids=lambda patch: patch.name)


def test_the_installed_harness_is_one_that_was_tried() -> None:
    assert host.version() in host.SERVES


def test_the_hook_watches_every_patched_module() -> None:
    assert {patch.module for patch in host.PATCHES} | {"lm_eval.models"} == set(_hook.WATCHED)


def look_up(patch: host.Patch) -> Any:
    target: Any = importlib.import_module(patch.module)
    for part in patch.name.split("."):
        target = getattr(target, part)
    return target


@EACH
def test_a_patch_is_in_place_and_applied_once(patch: host.Patch) -> None:
    plugin.register()
    before = look_up(patch)
    assert hasattr(before, "_embednoise")
    host.extend(patch.module, importlib.import_module(patch.module))
    assert look_up(patch) == before


@EACH
def test_a_missing_name_is_a_warning_that_says_what_is_lost(
    patch: host.Patch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        host.extend(patch.module, ModuleType(patch.module))  # a module without any of our names
    text = f"has no {patch.module}.{patch.name} (tried with 0.4.13), so there is no {patch.gives}"
    assert text in caplog.text


def test_the_other_patches_of_a_module_are_applied_where_one_cannot_be(
    caplog: pytest.LogCaptureFixture,
) -> None:
    module = ModuleType("lm_eval.evaluator")
    vars(module)["simple_evaluate"] = lambda model, torch_random_seed=1234: torch_random_seed
    host.extend("lm_eval.evaluator", module)
    assert module.simple_evaluate("m", torch_random_seed=3) == 3
    assert hasattr(module.simple_evaluate, "_embednoise")
    assert [record.args[2] for record in caplog.records] == ["evaluate"]


def test_what_k_needs_of_a_task_is_required_and_not_guessed() -> None:
    for change in (lambda t: host.set_filters(t, []), lambda t: host.add_means(t, {"pass@2": max})):
        with pytest.raises(RuntimeError, match=r"has no SimpleNamespace\._\w+ .*_k10, _k20"):
            change(SimpleNamespace())
