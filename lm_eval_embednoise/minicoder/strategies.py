"""Tells which of five strategies a program uses, from its syntax tree."""

from __future__ import annotations

import ast

STRATEGIES = ("loop", "comprehension", "functional", "recursion", "other")


def _calls_itself(function: ast.AST) -> bool:
    name = getattr(function, "name", None)
    return any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
        for node in ast.walk(function)
    )


def strategy(code: str) -> str | None:
    """Which of STRATEGIES a program mainly uses; None if it does not parse.

    The first rule that fits decides: a function that calls itself is `recursion`; a `yield` is
    `other`; a `for` or `while` statement is `loop`; `lambda`, `filter` or `reduce` is `functional`;
    a list, set or dict comprehension is `comprehension`; `map` or a generator expression is
    `functional`; everything else is `other`.
    """
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    called = {n.func.id for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    if any(
        _calls_itself(n) for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    ):
        return "recursion"
    if any(isinstance(n, ast.Yield | ast.YieldFrom) for n in nodes):
        return "other"
    if any(isinstance(n, ast.For | ast.While | ast.AsyncFor) for n in nodes):
        return "loop"
    if any(isinstance(n, ast.Lambda) for n in nodes) or called & {"filter", "reduce"}:
        return "functional"
    if any(isinstance(n, ast.ListComp | ast.SetComp | ast.DictComp) for n in nodes):
        return "comprehension"
    if any(isinstance(n, ast.GeneratorExp) for n in nodes) or "map" in called:
        return "functional"
    return "other"
