"""`embednoise regenerate KEY`: make one stored sample again, from its key, and compare.

The settings of the key are read from the store, the model is loaded as the run
loaded it, and the sample is generated alone. On a GPU, in half precision or in int8 kernels may
round differently in another batch; then the texts can differ, and the command says where.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_embednoise.engine.sampling import Sampling
from lm_eval_embednoise.noise.perturbation import EMBED, Perturbation
from lm_eval_embednoise.store.store import Store, Stored, digest
from lm_eval_embednoise.study.plan import parse_arguments

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from lm_eval_embednoise.engine.jobs import Job
    from lm_eval_embednoise.engine.sampler import Sampler
    from lm_eval_embednoise.models.hf_embednoise import HFEmbedNoise

_KINDS = (".npz", ".safetensors")
EPILOG = """\
examples:
  # the beginning of a key is enough; `embednoise generations export --to rows` lists keys
  embednoise regenerate 1447e2fa --store runs/store

  # with the hidden states after every block, before and after the noise, for probes
  embednoise regenerate 1447e2fa --store runs/store --activations sample.npz

  # the model is in another folder on this machine
  embednoise regenerate 1447e2fa --store runs/store --model_args pretrained=/models/qwen
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.epilog = EPILOG
    parser.add_argument("key", metavar="KEY", help="a sample's key, or its beginning")
    parser.add_argument("--store", required=True, metavar="DIR", help="the generation store")
    parser.add_argument(
        "--model_args", metavar="K=V,…", default="", help="instead of the run's own"
    )
    parser.add_argument("--device", help="as in lm_eval")
    parser.add_argument(
        "--activations", metavar="PATH", help="save the hidden states there: .npz or .safetensors"
    )


def run(args: argparse.Namespace) -> int:
    """Make the sample again; the exit status is 1 if it differs from the stored one."""
    target = None if args.activations is None else Path(args.activations)
    if target is not None and target.suffix not in _KINDS:
        raise ValueError(f"--activations {target}: the name must end in {' or '.join(_KINDS)}")
    store = Store(args.store)
    row = store.find(args.key)
    given = parse_arguments("--model_args", args.model_args)
    made = regenerate(store, row, {**given, **({"device": args.device} if args.device else {})})
    print(made.text)
    if target is not None:
        save(activations(made), target)
        print(f"--- hidden states of {len(made.ids)} generated tokens and the prompt: {target}")
    print(f"--- {row.key}: {made.difference(row)}")
    return 0 if made.equals(row) else 1


@dataclass(frozen=True)
class Regenerated:
    """A sample made again, and what made it."""

    lm: HFEmbedNoise
    sampler: Sampler
    job: Job
    ids: tuple[int, ...]
    text: str
    finish_reason: str

    def equals(self, row: Stored) -> bool:
        """Whether the stored sample has the same tokens and the same end."""
        return (self.ids, self.finish_reason) == (row.ids, row.finish_reason)

    def difference(self, row: Stored) -> str:
        """In words, how it compares with the stored one."""
        if self.equals(row):
            return f"equal to the stored sample ({len(self.ids)} tokens, {self.finish_reason})"
        stored = row.ids or ()
        pairs = enumerate(zip(self.ids, stored, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), min(len(self.ids), len(stored)))
        return (
            f"differs from the stored sample from token {at} on ({len(self.ids)} tokens, "
            f"{self.finish_reason}; stored: {len(stored)}, {row.finish_reason})"
        )


def regenerate(
    store: Store, row: Stored, model_args: Mapping[str, Any] | None = None
) -> Regenerated:
    """Make a stored sample again.

    Args:
        store: the store that has the sample.
        row: the sample.
        model_args: instead of those the run was given, for a model in another folder.

    Raises:
        ValueError: an imported sample, or a model whose settings are not those of the key; names
            what differs.
    """
    settings = store.settings()[row.settings]
    facts = store.runs().get(row.run)
    if "imported" in settings or facts is None:
        raise ValueError(
            f"{row.key} was imported from {settings.get('imported', {}).get('file', 'a file')}: "
            "what made it is not known, so it can't be made again"
        )
    from lm_eval_embednoise.models.hf_embednoise import HFEmbedNoise
    from lm_eval_embednoise.models.stored import input_of, settings_of

    arguments = {k: v for k, v in facts["model_args"].items() if v is not None}
    lm = HFEmbedNoise(batch_size=1, **{**arguments, **(model_args or {})})
    given = {k: v for k, v in facts["perturbation"].items() if v is not None}
    if isinstance(given.get("depth"), dict):
        given.pop("sigma", None)
    lm.set_perturbation(Perturbation(**given))
    sampling = Sampling(**{**facts["sampling"], "until": tuple(facts["sampling"]["until"])})
    now = json.loads(json.dumps(settings_of(lm, sampling)))
    now |= {key: settings[key] for key in ("key_version",) if key in settings}
    if digest(now) != row.settings:
        changed = [key for key in {**settings, **now} if settings.get(key) != now.get(key)]
        raise ValueError(
            f"{row.key} was made with another {', '.join(changed)} than what is loaded now; name "
            "the right model with --model_args pretrained=…"
        )
    prompt = store.prompts()[row.prompt]
    limit = lm.max_length - sampling.max_gen_toks if lm.truncation else None
    (job,) = lm._prompts.jobs(prompt.text, prompt.ids, row.problem or "", [row.sample], limit)
    if row.input and row.input != input_of(job):
        raise ValueError(
            f"{row.key} was made of another input than its prompt gives now: the tokenizer or its "
            "chat template has changed; name the right model with --model_args pretrained=…"
        )
    sampler = lm._sampler(sampling, lm._stop_strings(sampling.until))
    (sample,) = sampler.run([job])
    text = lm.text_of(sample.ids, sampling.until, job.clean)
    return Regenerated(lm, sampler, job, tuple(sample.ids), text, sample.finish_reason)


def activations(made: Regenerated) -> dict[str, Any]:
    """The hidden states of one forward pass over prompt and generated tokens, noise included.

    Returns:
        `embed` and `block.<k>`, float32 [pos, dim]; at a perturbed site (also `mlp.<k>`)
        `<site>.pre_noise` and `<site>.post_noise` instead. And `token_ids` int64 [pos],
        `prompt_length` int64 [1].
    """
    import torch
    from transformers.cache_utils import DynamicCache

    from lm_eval_embednoise.noise.inject import Rows, hooked, noise_keys
    from lm_eval_embednoise.noise.sites import in_mlp

    sampler, job, blocks = made.sampler, made.job, made.lm.blocks
    perturbation, device = sampler.perturbation, sampler.runner.device
    pair, length = (job.problem, job.samples[0]), len(job.prompt_ids)
    ids = torch.tensor([[*job.prompt_ids, *made.ids]], device=device)
    std = sampler.runner.site_std(0, job)
    rows = Rows(
        keys=noise_keys(perturbation, [pair], device),
        std={site: torch.tensor([value], dtype=torch.float64) for site, value in std.items()},
        prompt_length=torch.tensor([length], device=device),
        positions=torch.arange(ids.shape[1], device=device)[None],
        soft=sampler.runner.soft_prompts.vectors([pair]),
        soft_start=job.soft_starts(1, device),
        roots=sampler.runner.roots,
    )
    tensors: dict[str, torch.Tensor] = {}

    def note(moment: str) -> Any:
        def act(site: str, hidden: torch.Tensor) -> torch.Tensor:
            name = f"{site}.{moment}" if site in perturbation.sites else site
            tensors[name] = hidden[0].detach().float().cpu().clone()
            return hidden

        return act

    sites = (EMBED, *(f"block.{k}" for k in range(len(sampler.runner.blocks))))
    sites += tuple(site for site in perturbation.sites if in_mlp(site))
    with (
        torch.no_grad(),
        sampler.drawn(job.samples[0]),
        hooked(sampler.runner.model, sites, note("pre_noise"), blocks),
        sampler.runner.perturbed(rows),
        hooked(sampler.runner.model, tuple(perturbation.sites), note("post_noise"), blocks),
    ):
        sampler.runner.forward(ids, DynamicCache())
    tensors["token_ids"] = ids[0].cpu()
    tensors["prompt_length"] = torch.tensor([length])
    return tensors


def save(tensors: Mapping[str, Any], path: Path) -> None:
    """Write named tensors as .npz or .safetensors.

    Raises:
        OSError: the file can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(dict(tensors), path)
            return
        import numpy as np

        np.savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from None
