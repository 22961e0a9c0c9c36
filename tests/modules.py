"""The library's modules and who imports whom: `python -m tests.modules` prints it.

Imports for type checking and inside functions count like any other.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "lm_eval_embednoise"
FOLDERS = {PACKAGE: ROOT / PACKAGE, f"{PACKAGE}.analysis": ROOT / "analysis"}


def modules() -> dict[str, Path]:
    """Dotted name → file, of every module."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


def imports(name: str, path: Path) -> set[str]:
    """Dotted names that a module imports, wherever in it."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            stem = ".".join([*base, node.module or ""]) if node.level else node.module or ""
            found.update(f"{stem.strip('.')}.{alias.name}" for alias in node.names)
    return found


def arrows() -> dict[str, set[str]]:
    """Module → the modules of the library that it imports."""
    known = modules()
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        found[name] = set()
        for target in imports(name, path):
            while target and target not in known:
                target = target.rpartition(".")[0]
            if target not in ("", PACKAGE, name):
                found[name].add(target)
    return found


def folder(name: str) -> str:
    """The folder of a module; a module beside the folders is its own."""
    return name.split(".")[1] if "." in name else name


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of nodes that reach each other (Tarjan 1972), each sorted."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph.get(node, ())):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def of_folders(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Folder → the folders that its modules import from."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, targets in graph.items():
        found[folder(name)] |= {folder(target) for target in targets} - {folder(name)}
    return found


def main() -> int:
    """Print folders, arrows and circles; the exit status is 1 if there is a circle."""
    graph, known = arrows(), modules()
    lines: dict[str, list[int]] = defaultdict(list)
    for name, path in known.items():
        lines[folder(name)].append(len(path.read_text().splitlines()))
    above = of_folders(graph)
    for name in sorted(lines):
        sizes, targets = lines[name], ", ".join(sorted(above[name])) or "nothing"
        print(f"{name:20} {len(sizes):3} modules {sum(sizes):6} lines  imports {targets}")
    found = circles(graph) + circles(above)
    print(f"{len(found)} circles" + "".join(f"\n  {' ⇄ '.join(group)}" for group in found))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
