"""A contender in a process of its own, which says its figures in JSON; vLLM's runs from this file.

vLLM has an environment of its own, so only the standard library is imported until it runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any


def said(command: list[str], given: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run a command that reads JSON, or nothing, and whose last line of JSON is its answer.

    Raises:
        SystemExit: it failed; with the end of what it wrote.
    """
    environment = {
        **os.environ,
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    with tempfile.TemporaryFile("w+") as fed, tempfile.TemporaryFile("w+") as written:
        fed.write(json.dumps(given))
        fed.seek(0)
        done = subprocess.run(
            command, stdin=fed, stdout=written, stderr=subprocess.STDOUT, check=False,
            env=environment,
        )  # fmt: skip
        written.seek(0)
        lines = written.read().splitlines()
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n" + "\n".join(lines[-30:]))
    # vLLM's processes may have the last word.
    return dict(json.loads([line for line in lines if line[:1] == "{"][-1]))


def vllm(given: dict[str, Any]) -> dict[str, Any]:
    """Run vLLM with n = k on the prompts: seconds and tokens.

    Args:
        given: model, dtype, prompts, and k, rows, tokens, stop as in generation.py.
    """
    import torch
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    llm = LLM(
        given["model"], dtype=given["dtype"], enforce_eager=not torch.cuda.is_available(),
        max_num_seqs=given["rows"], max_model_len=2048, gpu_memory_utilization=0.5,
    )  # fmt: skip
    settings = SamplingParams(
        n=given["k"], temperature=0.8, max_tokens=given["tokens"], stop=given["stop"], top_k=0
    )
    llm.generate(["def f(xs):\n"], SamplingParams(max_tokens=4), use_tqdm=False)
    start = time.perf_counter()
    found = llm.generate(given["prompts"], settings, use_tqdm=False)
    seconds = time.perf_counter() - start
    texts = [output.text for request in found for output in request.outputs]
    tokenizer = llm.get_tokenizer()
    return {"seconds": seconds, "tokens": sum(len(tokenizer.encode(text)) for text in texts)}


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        found = vllm(json.load(sys.stdin))
    print(json.dumps(found))
