"""docs/study.md lists every key of a study file and no other; its example is a study."""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from lm_eval_embednoise.study import run as study_command
from lm_eval_embednoise.study import study_file
from lm_eval_embednoise.study.method import StudyError
from lm_eval_embednoise.study.plan import Calibration, Model, Study
from lm_eval_embednoise.study.study_file import read_methods

PAGE = (Path(__file__).parents[1] / "docs" / "study.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL))


def keys(section: str) -> set[str]:
    return set(re.findall(r"^\| `(\w+)` \|", SECTIONS[section], flags=re.MULTILINE))


def fields(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def test_the_page_has_every_key_and_no_other() -> None:
    assert keys("The study") == fields(Study) | {"limit", "k"}
    assert keys("A model") == fields(Model)
    assert keys("Calibrate") == fields(Calibration)


@pytest.mark.parametrize(("section", "list_"), [("A task", "tasks"), ("A method", "methods")])
def test_the_keys_of_tasks_and_methods_are_those_that_are_read(
    section: str, list_: str, tmp_path: Path
) -> None:
    """Each of them is taken, and an error names just these."""
    values = {"name": "temp-0.8", "limit": 3, "k": 2, "doses": [0.5], "seeds": [1]}
    whole = {"models": [{"name": "m"}], "tasks": ["minicode_diverse"], "methods": ["greedy"]}
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump({**whole, list_: [{k: values[k] for k in keys(section)}]}))
    study_file.load(str(path))
    path.write_text(yaml.safe_dump({**whole, list_: [{"name": "greedy", "other": 1}]}))
    with pytest.raises(StudyError) as error:
        study_file.load(str(path))
    allowed = str(error.value).partition("or ")[2].partition(";")[0]
    assert set(re.findall(r"\w+", allowed)) - {"and"} == keys(section)


def test_every_key_has_a_type_a_default_and_a_meaning() -> None:
    rows = re.findall(r"^\| `\w+` \|.*$", PAGE, flags=re.MULTILINE)
    assert len(rows) > 30
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 4 and all(cells), row


def test_every_flag_is_on_the_page() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    study_command.add_arguments(parser)
    for action in parser._actions:
        if action.option_strings:
            assert any(f"{flag}" in PAGE for flag in action.option_strings), action.dest


def test_the_examples_are_studies(tmp_path: Path) -> None:
    [example] = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    (tmp_path / "mine.yaml").write_text(example)
    found = study_file.load(str(tmp_path / "mine.yaml"))
    assert found.candidate in found.calibrate.names if found.calibrate else False
    names = [m.name for m in read_methods({"name": "temp-0.8", "doses": [0.2, 0.8]}, None, ())]
    assert f"is `{names[0]}` and `{names[1]}`" in SECTIONS["A method"]
