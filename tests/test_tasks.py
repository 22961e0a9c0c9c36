"""The task files through the harness's own machinery, with a model that needs no weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
import lm_eval
from lm_eval.api import registry
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

import lm_eval_embednoise.tasks
from lm_eval_embednoise import identical, plugin
from lm_eval_embednoise.minicoder import load_problems
from lm_eval_embednoise.problems import documents
from lm_eval_embednoise.scoring import aggregate, metrics, reduce
from lm_eval_embednoise.scoring.maths import MARKED
from lm_eval_embednoise.scoring.metrics import METRICS
from lm_eval_embednoise.scoring.records import code_record, math_records

ROOT = Path(next(iter(lm_eval_embednoise.tasks.__path__)))
EMBEDDED = {
    f"{name}{suffix}": k
    for name in ("minicode_diverse", "minimath_diverse")
    for suffix, k in (("", 100), ("_k1", 1), ("_k10", 10), ("_k20", 20))
} | {"minimath_diverse_fewshot": 100}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Gold(LM):
    """Answers every problem with its own solution: what any correct pipeline scores as 1."""

    seen: list[Any]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        self.seen = requests
        return [r.doc.get("canonical_solution") or f" {r.doc['answer']}" for r in requests]

    def loglikelihood(self, requests: list[Any]) -> Any:
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    plugin.register()
    return TaskManager()


@pytest.fixture(scope="module")
def loaded(manager: TaskManager) -> dict[str, Any]:
    return manager.load(list(EMBEDDED))["tasks"]


def test_every_task_and_the_group_are_known_by_name(manager: TaskManager) -> None:
    assert {*EMBEDDED, "embednoise_mini"} <= set(manager.all_tasks)


def test_examples_are_problems_that_no_comparison_sees(loaded: dict[str, Any]) -> None:
    """Each with its own answer, from the calibration split: none of its families is in the test."""
    known = {p["question"]: p["answer"] for p in load_problems("minimath", "calibration")}
    task = loaded["minimath_diverse_fewshot"]
    examples = task.config.fewshot_config.samples
    assert len(examples) == task.config.num_fewshot == 4
    assert {e["question"]: e["answer"] for e in examples}.items() <= known.items()
    doc = task.test_docs()[0]
    prompt = task.fewshot_context(doc, 4)
    assert prompt.count("Question: ") == 5
    assert prompt.endswith(f"\n#### 25\n\nQuestion: {doc['question']}\nAnswer:")


def test_k_stands_in_repeats_and_in_the_filter_alike(loaded: dict[str, Any]) -> None:
    for name, k in EMBEDDED.items():
        config = loaded[name].config
        assert config.repeats == k, name
        assert [f["k"] for f in config.filter_list[0]["filter"]] == [k], name


def test_generation_settings_are_explicit_and_leave_room_for_a_temperature(
    loaded: dict[str, Any],
) -> None:
    for name in EMBEDDED:
        settings = loaded[name].config.generation_kwargs
        assert settings["do_sample"] is False
        assert isinstance(settings["until"], list)
        assert settings["max_gen_toks"] > 0
        assert set(settings) == {"do_sample", "until", "max_gen_toks"}


def test_every_metric_brings_a_mean_that_survives_nan_and_a_standard_error(
    loaded: dict[str, Any],
) -> None:
    for name in EMBEDDED:
        for metric, function in loaded[name].aggregation().items():
            assert function in (aggregate.mean, aggregate.total), metric
            assert callable(function.stderr)


def test_no_metric_or_filter_of_ours_is_named_like_a_built_in(loaded: dict[str, Any]) -> None:
    """lm_eval 0.5 refuses to load a task with such a metric."""
    assert "perplexity" in registry.metric_registry  # the registries are filled
    assert "take_first" in registry.filter_registry
    ours = {*METRICS, identical.METRIC}
    assert not ours & {*registry.metric_registry, *registry.aggregation_registry}
    filters = {pipeline.name for task in loaded.values() for pipeline in task._filters}
    assert filters == {"records"}
    assert "records" not in registry.filter_registry


def test_the_tasks_report_just_the_metrics_that_they_aggregate(loaded: dict[str, Any]) -> None:
    code = {entry["metric"] for entry in metrics.CODE}
    maths = {entry["metric"] for entry in metrics.MATHS}
    plus = {entry["metric"] for entry in metrics.CODE_PLUS}
    assert plus - code == {*(f"pass@{k}_base" for k in (1, 10, 100)), "unique_correct_base"}
    assert code | maths | plus == set(METRICS)
    assert set(loaded["minicode_diverse"].aggregation()) == code
    assert set(loaded["minimath_diverse"].aggregation()) == maths
    for name in EMBEDDED:
        directions = loaded[name].higher_is_better()
        assert directions == {metric: METRICS[metric].better > 0 for metric in directions}
    doc = {"prompt": "", "answer": "#### 1"}
    record = code_record(None, 0, "", None)
    assert set(reduce.plus_metrics(doc, [[record] * 100])) == plus
    assert set(reduce.code_metrics(doc, [[record] * 100])) == code
    worked = math_records([None] * 100, "1", MARKED)
    assert set(reduce.math_metrics(doc, [worked])) == maths


def test_prompts_are_what_the_embedded_model_was_trained_on(loaded: dict[str, Any]) -> None:
    code, maths = loaded["minicode_diverse"], loaded["minimath_diverse"]
    problem, question = load_problems("minicode")[0], load_problems("minimath")[0]
    assert code.doc_to_text(next(iter(code.test_docs()))) == problem["prompt"]
    expected = f"Question: {question['question']}\nAnswer:"
    assert maths.doc_to_text(next(iter(maths.test_docs()))) == expected


def test_the_documents_are_the_held_out_problems_with_their_clusters(
    loaded: dict[str, Any],
) -> None:
    for name, size in (("minicode", 164), ("minimath", 200)):
        docs = list(loaded[f"{name}_diverse"].test_docs())
        assert len(docs) == size
        assert [doc["task_id"] for doc in docs] == [p["task_id"] for p in load_problems(name)]
        assert all(doc["cluster"] for doc in docs)
        calibration = {p["task_id"] for p in load_problems(name, "calibration")}
        assert not calibration & {doc["task_id"] for doc in docs}


def test_gold_solutions_score_one_through_the_harness(manager: TaskManager) -> None:
    model = Gold()
    results = lm_eval.simple_evaluate(
        model=model,
        tasks=["minicode_diverse_k10", "minimath_diverse_k10"],
        task_manager=manager,
        limit=4,
        bootstrap_iters=10,
    )
    code = results["results"]["minicode_diverse_k10"]
    maths = results["results"]["minimath_diverse_k10"]
    for found in (code, maths):
        assert found["pass@1,records"] == found["pass@10,records"] == 1.0
        assert found["self_bleu,records"] == 1.0
        assert found["pass@1_stderr,records"] == 0.0
        assert math.isnan(found["clean_perplexity,records"])
        assert "pass@100,records" not in found
    assert maths["maj@K,records"] == 1.0
    sample = results["samples"]["minicode_diverse_k10"][0]
    assert [record["verdict"] for record in sample["filtered_resps"][0]] == ["passed"] * 10
    assert results["versions"]["minicode_diverse_k10"] == 2.0


def test_pass_at_any_k_by_one_argument(
    manager: TaskManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TaskManager, "load", TaskManager.load)
    monkeypatch.setenv(reduce.PASS_AT_VARIABLE, "")
    plugin.load_with_pass_at(plugin.numbers("3,7"))
    found = lm_eval.simple_evaluate(
        model=Gold(),
        tasks=["minimath_diverse_k10"],
        task_manager=manager,
        limit=3,
        bootstrap_iters=10,
    )["results"]["minimath_diverse_k10"]
    assert found["pass@3,records"] == found["pass@7,records"] == 1.0
    assert found["pass@3_stderr,records"] == 0.0
    with pytest.raises(ValueError, match="pass@7 needs as many samples, and minimath_diverse_k1 "):
        manager.load(["minimath_diverse_k1"])
    for wrong in ("0", "a", "1,", "-2"):
        with pytest.raises(ValueError, match="whole numbers k >= 1"):
            plugin.numbers(wrong)


def test_all_gold_solutions_of_minicode_pass() -> None:
    from lm_eval_embednoise.scoring.filters import CodeRecords

    docs = [p for split in ("test", "calibration") for p in load_problems("minicode", split)]
    made = CodeRecords(k=1).apply([[doc["canonical_solution"]] for doc in docs], docs)
    assert [row[0]["verdict"] for row in made] == ["passed"] * len(docs)
    assert all(row[0]["valid"] for row in made)


def test_missing_data_is_one_line_that_names_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str, split: str) -> None:
        raise FileNotFoundError(2, "No such file", f"{name}.jsonl")

    monkeypatch.setattr("lm_eval_embednoise.minicoder.load_problems", nothing)
    with pytest.raises(documents.DataMissing) as raised:
        documents.minicode()
    message = str(raised.value)
    assert "\n" not in message
    assert "minicode.jsonl" in message
    assert "install it again" in message
    assert "make_data" in message


def test_the_loaders_bear_whatever_the_harness_hands_them() -> None:
    assert set(documents.minicode(pretrained="x", sigma=0.1)) == {"test", "calibration"}


def test_task_files_name_functions_only_by_their_dotted_path() -> None:
    for path in ROOT.rglob("*.yaml"):
        for line in path.read_text().splitlines():
            if "!function" in line:
                assert "!function lm_eval_embednoise." in line, (path, line)
