"""Time and memory of `embednoise compare` and `report` on synthetic folders of a real study's size.

    python benchmarks/compare.py --methods 10 --problems 500 --k 100

The last line is JSON. The folders are written to a temporary directory first (not timed).
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lm_eval_embednoise.analysis.compare import write_outputs
from lm_eval_embednoise.analysis.comparison import compare
from lm_eval_embednoise.analysis.records import read_runs
from lm_eval_embednoise.analysis.report import Report
from lm_eval_embednoise.written import write_text
from tests.support.synthetic import Method, write_run

BODY = "    total = 0\n    for value in values:\n        if value % 3 == 0:\n            " * 4


def peak_mb() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", type=int, default=10)
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--k", type=int, default=100)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        methods = {"temp-0.8": Method(0.0, 0.2, temperature=0.8)}
        for i in range(1, args.methods):
            methods[f"embednoise-{i / 100}"] = Method(-i / 20, 0.1 + i / 50, sigma=i / 100)
        for name, method in methods.items():
            write_run(root, name, method, n=args.problems, k=args.k, families=None, text=BODY)
        size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
        start, cpu = time.perf_counter(), time.process_time()
        runs = read_runs([root])
        read = time.perf_counter()
        comparison = compare(runs, candidate="embednoise-0.01")
        compared = time.perf_counter()
        write_outputs(comparison, root / "out" / "comparison.json")
        written = time.perf_counter()
        compare_peak, compare_cpu = peak_mb(), time.process_time() - cpu
        report = Report(comparison, runs, root / "out" / "figures")
        write_text(root / "out" / "report.html", report.render())
        reported = time.perf_counter()
    result = {
        "methods": args.methods,
        "problems": args.problems,
        "k": args.k,
        "input_mb": round(size / 1e6),
        "read_s": round(read - start, 1),
        "compare_s": round(compared - read, 1),
        "write_s": round(written - compared, 1),
        "total_s": round(written - start, 1),
        "total_cpu_s": round(compare_cpu, 1),
        "peak_mb": compare_peak,
        "report_s": round(reported - written, 1),
        "report_peak_mb": peak_mb(),
        "figures": report.count,
        "report_cpu_s": round(time.process_time() - cpu - compare_cpu, 1),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    print(f"compare and report, {args.methods} methods × {args.problems} problems × K = {args.k}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
