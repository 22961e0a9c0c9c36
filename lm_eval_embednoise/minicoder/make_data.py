"""Writes the held-out problem files: `python -m lm_eval_embednoise.minicoder.make_data`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from . import DATA_DIR
from .heldout import minicode_records, minimath_records


def to_jsonl(records: list[dict[str, Any]]) -> str:
    """One JSON object a line, keys in the records' order."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def main(argv: list[str] | None = None) -> None:
    """Write minicode.jsonl and minimath.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DATA_DIR, help="folder for the JSONL files")
    out = parser.parse_args(argv).out
    out.mkdir(parents=True, exist_ok=True)
    for name, records in (("minicode", minicode_records()), ("minimath", minimath_records())):
        (out / f"{name}.jsonl").write_text(to_jsonl(records), encoding="utf-8", newline="\n")
        print(f"{out / name}.jsonl: {len(records)} problems")


if __name__ == "__main__":
    main()
