"""Look at what `make demo` wrote: all methods and tasks, numbers, and real pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(folder: Path) -> None:
    """Exit with a message unless the folder holds a whole comparison."""
    comparison = json.loads((folder / "comparison.json").read_text())
    text = json.dumps(comparison)
    for name in ("greedy", "temp-0.8", "temp-1.5", "nucleus-0.95", "embednoise-0.01",
                 "embednoise-0.05", "embednoise-0.1", "embednoise-0.5", "embednoise-1.0",
                 "minicode_diverse", "minimath_diverse", "pass@1", "distinct_2"):  # fmt: skip
        if name not in text:
            sys.exit(f"{name} is missing from comparison.json")
    if "NaN" in text:
        sys.exit("comparison.json holds a NaN")
    pngs, svgs = list(folder.glob("*.png")), list(folder.glob("*.svg"))
    if not pngs or not svgs:
        sys.exit(f"no plot in {folder}")
    if not all(png.read_bytes().startswith(b"\x89PNG") for png in pngs):
        sys.exit("a .png is not a PNG")
    if not all("</svg>" in svg.read_text() for svg in svgs):
        sys.exit("an .svg is not an SVG")
    print(f"demo: {len(comparison)} sections, {len(pngs)} PNG, {len(svgs)} SVG: as expected")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
