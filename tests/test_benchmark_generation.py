"""The benchmark of a model of one's own runs to its last line, and that line is as promised."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from lm_eval_embednoise.minicoder import MODEL_DIR, load_problems

ROOT = Path(__file__).parents[1]


def test_its_last_line_has_the_promised_keys(tmp_path: Path) -> None:
    rows = [{"prompt": problem["prompt"]} for problem in load_problems("minicode")[:3]]
    (tmp_path / "HumanEval.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sizes = {"problems": 2, "k": 3, "rows": 6, "tokens": 4, "repeats": 1, "dtypes": "float32"}
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks" / "generation.py"), "--model"),
            *(str(MODEL_DIR), *(word for key in sizes for word in (f"--{key}", str(sizes[key])))),
        ],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "EMBEDNOISE_DATA": str(tmp_path)},
    )  # fmt: skip
    assert not done.returncode, done.stdout + done.stderr
    *table, last = done.stdout.splitlines()
    (found,) = [json.loads(last)[dtype] for dtype in ("float32",)]
    rates, ratios = found["tokens_per_s"], found["ratios"]
    assert set(rates) == {"stock", "ours", "noise", "vllm"}
    assert rates["vllm"] is None and ratios["ours_over_vllm"] is None
    assert all(rates[name] > 0 for name in ("stock", "ours", "noise"))
    assert ratios["ours_over_stock"] == rates["ours"] / rates["stock"]
    assert set(ratios) == {
        *("ours_over_stock", "ours_over_vllm", "noise_over_ours", "share_of_limit")
    }
    assert any("MiB peak" in line for line in table)
