"""The independent reference: every sample by one pass without any cache, noise from its definition.

Nothing of the engine is used but its argument classes: the random streams, the noise, the norms
and the choice of tokens are written out again from docs/perturbation.md, on NumPy and SciPy, with
hooks of their own. A causal model's logits after each position of a whole text are what decoding
token by token gives, so one pass shows whether every token of a sample was the right one.
"""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor, nn

from lm_eval_embednoise.engine.jobs import Job
from lm_eval_embednoise.noise.perturbation import Perturbation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from transformers import PreTrainedModel

    from lm_eval_embednoise.engine.sampling import Sampling
    from lm_eval_embednoise.noise.clean_states import CleanStates

MASK = np.uint64(0xFFFFFFFF)


def stream_key(seed: int, problem: str, sample: int, purpose: str, site: str = "") -> int:
    """The 64-bit key of a stream: BLAKE2b over stream version 1 and the fields as JSON."""
    text = json.dumps([1, seed, problem, sample, purpose, site], separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def philox(key: int, block: Any, position: Any) -> np.ndarray:
    """Philox-4x32-10 (Salmon et al. 2011) at counters (block, position, 0, 0): uint64 [..., 4]."""
    block, position = np.broadcast_arrays(block, position)
    c = [block.astype(np.uint64), position.astype(np.uint64)]
    c += [np.zeros_like(c[0]), np.zeros_like(c[0])]
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        low, high = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [
            (high >> np.uint64(32)) ^ c[1] ^ np.uint64(k0),
            high & MASK,
            (low >> np.uint64(32)) ^ c[3] ^ np.uint64(k1),
            low & MASK,
        ]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(c, axis=-1)


def normals(key: int, positions: Sequence[int], dim: int) -> Tensor:
    """Standard normal vectors, by the inverse distribution function: float32 [pos, dim]."""
    where = np.asarray(positions)[:, None]
    words = philox(key, np.arange(-(-dim // 4))[None], where).reshape(len(positions), -1)[:, :dim]
    return torch.from_numpy(ndtri((words.astype(np.float64) + 0.5) * 2.0**-32).astype(np.float32))


def uniforms(key: int, positions: Sequence[int], dim: int) -> Tensor:
    """Vectors uniform on ±√3, of variance 1: float32 [pos, dim]."""
    where = np.asarray(positions)[:, None]
    words = philox(key, np.arange(-(-dim // 4))[None], where).reshape(len(positions), -1)[:, :dim]
    u = (words.astype(np.float64) + 0.5) * 2.0**-32
    return torch.from_numpy(((2 * u - 1) * math.sqrt(3)).astype(np.float32))


def orthogonal(key: int, place: int, dim: int) -> Tensor:
    """The vector at a place of a group of 64, by Gram and Schmidt's process: float32 [dim]."""
    start = place - place % dim
    drawn = normals(key, range(start, place + 1), dim).double().numpy()
    basis: list[np.ndarray] = []
    for vector in drawn:
        rest = vector.copy()
        for _ in range(2):
            for other in basis:
                rest -= (rest @ other) * other
        basis.append(rest / np.linalg.norm(rest))
    return torch.from_numpy((basis[-1] * np.linalg.norm(drawn[-1])).astype(np.float32))


def uniform(key: int, step: int) -> float:
    """A number in [0, 1) of 53 bits."""
    words = philox(key, np.array(0), np.array(step))
    return int((int(words[0]) << 21) + (int(words[1]) >> 11)) * 2.0**-53


def dose(p: Perturbation, position: int, length: int) -> float:
    """1[p ∈ P] · g(t(p)) of one position behind a prompt of `length` vectors."""
    kind, _, n = p.positions.partition(":")
    t = max(0, position - length + 1)
    inside = {
        "prompt": t == 0,
        "all": True,
        "generated": t > 0 and (not n or t <= int(n)),
        "first": t == 0 and position < int(n or 0),
        "last": t == 0 and position >= length - int(n or 0),
        "dummy": t == 0 and position >= length - int(n or 0),
    }[kind]
    if not inside:
        return 0.0
    if p.schedule == "constant" or t == 0:
        return 1.0
    end, x = (p.sigma_end or 0.0) / (p.sigma or 1.0), min(1.0, t / (p.anneal_tokens or 1))
    return {
        "linear": 1 + (end - 1) * x,
        "cosine": end + (1 - end) * 0.5 * (1 + math.cos(math.pi * x)),
        "exponential": math.exp(x * math.log(end)) if end else 0.0,
        "step": 1.0 if x < 1 else end,
    }[p.schedule]


@dataclass
class Pass:
    """A pass over a sample: float32 logits [tokens + 1, vocab] behind the prompt, site → ρ.

    On the CPU, whatever the model is on.
    """

    logits: Tensor
    rho: dict[str, float]


class Cacheless:
    """One model under one perturbation, a pass for each sample."""

    def __init__(
        self,
        model: PreTrainedModel,
        perturbation: Perturbation,
        states: CleanStates | None = None,
    ) -> None:
        self.states = states
        self.model, self.perturbation = model, perturbation
        self.embedding: nn.Module = model.get_input_embeddings()
        blocks = (m for m in model.modules() if isinstance(m, nn.ModuleList))
        self.blocks = next(m for m in blocks if len(m) == model.config.num_hidden_layers)
        self.width: int = model.config.hidden_size
        self.device = model.device
        table = self.embedding(torch.arange(len(self.embedding.weight), device=self.device))
        self.table = table.detach().double().cpu()

    @torch.no_grad()
    def norm(self, site: str, clean: Sequence[int]) -> float:
        """m: the norm that the unit of sigma refers to.

        Where the models tested here scale their vectors (Gemma 2), the embedding module does it.
        """
        kind = self.perturbation.sigma_reference
        if kind == "site":
            kind = "table" if site == "embed" else "hidden"
        if kind == "decode":
            assert self.states is not None
            return self.states.norms[site]
        if kind == "table":
            return float(self.table.norm(dim=-1).mean())
        if kind == "prompt":
            return float(self.table[list(clean)].norm(dim=-1).mean())
        seen: list[Tensor] = []

        def note(hidden: Tensor) -> Tensor:
            seen.append(hidden[0].double().norm(dim=-1))
            return hidden

        with self._at(site, note):
            self.model(input_ids=torch.tensor([list(clean)], device=self.device), use_cache=False)
        bos = self.model.config.bos_token_id
        start = int(len(clean) > 1 and bos is not None and clean[0] == bos)
        return float(seen[0][start:].quantile(0.5))

    def std(self, clean: Sequence[int]) -> dict[str, float]:
        """Site → standard deviation per coordinate."""
        p = self.perturbation
        if p.sigma_unit == "absolute":
            return dict(p.sites)
        return {
            site: sigma
            * self.norm(site, clean)
            / (math.sqrt(self.width_of(site)) if p.sigma_unit == "relative" else 1.0)
            for site, sigma in p.sites.items()
        }

    def width_of(self, site: str) -> int:
        """d at a site."""
        if not site.startswith("mlp"):
            return self.width
        weight = self._mlp_end(site).weight
        return next(n for n in weight.shape if n != self.width)

    def _mlp_end(self, site: str) -> Any:
        """The last module of a block's MLP (of the families tested here)."""
        block: Any = self.blocks[int(site.partition(".")[2])]
        names = ("down_proj", "c_proj", "dense_4h_to_h")
        return next(getattr(block.mlp, name) for name in names if hasattr(block.mlp, name))

    @torch.no_grad()
    def run(
        self,
        job: Job,
        sample: int,
        entered: Sequence[int],
        std: dict[str, float],
        jitter: float = 0.0,
    ) -> Pass:
        """The pass over a sample's prompt and the generated tokens that were entered.

        Args:
            job: the problem.
            sample: its sample index.
            entered: generated ids.
            std: of the noise at each site.
            jitter: relative size of a random change of all hidden states, to see what rounding
                can do.
        """
        p, length = self.perturbation, len(job.prompt_ids)
        ids = torch.tensor([[*job.prompt_ids, *entered]], device=self.device)
        weights = torch.tensor([dose(p, i, length) for i in range(ids.shape[1])])
        counters = [0 if p.scope == "sequence" else i for i in range(ids.shape[1])]
        rho: dict[str, float] = {}

        def add(site: str) -> Callable[[Tensor], Tensor]:
            def act(hidden: Tensor) -> Tensor:
                draw = own_draw(p, sample)
                drawn = self.drawn(job.problem, draw, site, counters, hidden.shape[-1])
                noise = drawn * (std[site] * weights.double()).float()[:, None]
                noise = noise.to(hidden.device)
                ratios = noise.double().norm(dim=-1) / hidden[0].double().norm(dim=-1)
                if bool((weights > 0).any()):
                    rho[site] = float(ratios.cpu()[weights > 0].mean())
                return hidden + noise.to(hidden.dtype)

            return act

        with ExitStack() as stack:
            if p.rsp:
                assert job.soft_start is not None
                where = slice(job.soft_start, job.soft_start + p.rsp)
                vectors = self.soft_prompt(job.problem, sample)

                def put(module: nn.Module, args: Any, output: Tensor) -> Tensor:
                    output = output.clone()
                    output[0, where] = vectors.to(output)
                    return output

                stack.callback(self.embedding.register_forward_hook(put).remove)
            if jitter:
                for block in range(len(self.blocks)):
                    stack.enter_context(
                        self._at(f"block.{block}", lambda h: h * (1 + jitter * torch.randn_like(h)))
                    )
            for site in p.sites:
                stack.enter_context(self._at(site, add(site)))
            if p.weight_sigma:
                stack.enter_context(self._shaken(sample))
            for block in p.tempered_blocks or range(len(self.blocks)):
                stack.enter_context(self._softened(self.blocks[block], p.attention_temperature))
            logits = self.model(input_ids=ids, use_cache=False).logits
        return Pass(logits[0, length - 1 :].float().cpu(), rho)

    def drawn(
        self, problem: str, sample: int, site: str, counters: Sequence[int], dim: int
    ) -> Tensor:
        """z of a sample at a site: float32 [pos, dim]."""
        p, named = self.perturbation, "" if self.perturbation.shared else site
        if p.noise_law == "orthogonal":
            key = stream_key(p.seed, problem, sample // 64, "orthogonal", named)
            return orthogonal(key, sample % 64, dim).expand(len(counters), dim)
        law = uniforms if p.noise_law == "uniform" else normals
        drawn = law(stream_key(p.seed, problem, sample, "noise", named), counters, dim)
        if p.noise_law == "covariance":
            assert self.states is not None
            drawn = (drawn.double() @ self.states.roots[site].double()).float()
        return drawn

    def tokens(
        self, job: Job, sample: int, std: dict[str, float], sampling: Sampling, count: int
    ) -> list[int]:
        """The first tokens of a sample, each chosen behind a pass over all before it."""
        key = stream_key(self.perturbation.seed, job.problem, sample, "sample")
        ids: list[int] = []
        for step in range(count):
            logits = self.run(job, sample, ids, std).logits[-1]
            if sampling.first_token and not step:
                ids.append(first_token(logits, sampling.first_token, sample))
            elif likeliest_at(sampling, step):
                ids.append(int(logits.argmax()))
            else:
                edges = cdf(logits, sampling)
                ids.append(int(np.searchsorted(edges, uniform(key, step), side="right")))
        return ids

    def soft_prompt(self, problem: str, sample: int) -> Tensor:
        """The random soft prompt of a sample: float32 [N, dim]."""
        p = self.perturbation
        over = self.table if p.rsp_fit == "per-dimension" else self.table.reshape(-1, 1)
        mean, std = over.mean(dim=0), over.std(dim=0, unbiased=False)
        key = stream_key(p.seed, problem, own_draw(p, sample), "rsp", "embed")
        drawn = normals(key, range(p.rsp), self.table.shape[1]).double()
        if p.rsp_fit == "exact":
            drawn = (drawn - drawn.mean()) / drawn.std(unbiased=False)
        return (mean + p.rsp_scale * std * drawn).float()

    @torch.no_grad()
    def clean_nll(self, clean: Sequence[int], ids: Sequence[int], jitter: float = 0.0) -> float:
        """Summed negative log-likelihood of ids after the clean prompt, nats."""
        if not ids:
            return 0.0
        plain = Cacheless(self.model, Perturbation())
        logits = plain.run(Job(tuple(clean), "", (0,)), 0, ids[:-1], {}, jitter).logits
        return nll_of(logits, ids)

    @contextmanager
    def _shaken(self, sample: int) -> Iterator[None]:
        """The linear layers of the blocks with the noise of a sample index."""
        p, own = self.perturbation, []
        for number, block in enumerate(self.blocks):
            for name, module in block.named_modules():
                if "Linear" in type(module).__name__ or type(module).__name__ == "Conv1D":
                    weight: Any = module.weight
                    own.append((weight, weight.data))
                    key = stream_key(p.seed, "", sample, "weights", f"block.{number}.{name}")
                    std = p.weight_sigma * float(weight.data.double().pow(2).mean()) ** 0.5
                    drawn = normals(key, range(len(weight)), weight.shape[1]).to(weight.device)
                    weight.data = (weight.data.float() + std * drawn).to(weight.dtype)
        try:
            yield
        finally:
            for weight, data in own:
                weight.data = data

    @contextmanager
    def _softened(self, block: Any, temperature: float) -> Iterator[None]:
        """Queries divided by a temperature where they leave their projection (no family with a norm
        behind it), and so the logits of attention.
        """
        if temperature == 1:
            yield
            return
        modules = dict(block.named_modules())

        def shrink(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            queries = output.shape[-1] if module is not modules.get("attn.c_attn") else self.width
            return torch.cat([output[..., :queries] / temperature, output[..., queries:]], dim=-1)

        name = next(n for n in ("self_attn.q_proj", "attn.c_attn") if n in modules)
        handle = modules[name].register_forward_hook(shrink)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _at(self, site: str, act: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """`act` on what enters the first block ("embed"), leaves block k ("block.k"), or enters
        the end of its MLP ("mlp.k").
        """

        def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
            if args:
                return (act(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": act(kwargs["hidden_states"])}

        def behind(module: nn.Module, args: Any, output: Any) -> Any:
            return (act(output[0]), *output[1:]) if isinstance(output, tuple) else act(output)

        if site == "embed":
            handle = self.blocks[0].register_forward_pre_hook(before, with_kwargs=True)
        elif site.startswith("mlp"):
            handle = self._mlp_end(site).register_forward_pre_hook(before, with_kwargs=True)
        else:
            handle = self.blocks[int(site.partition(".")[2])].register_forward_hook(behind)
        try:
            yield
        finally:
            handle.remove()


def own_draw(p: Perturbation, sample: int) -> int:
    """The sample whose draws of noise and soft prompt a sample takes."""
    return sample - sample // p.draws * p.draws if p.draws else sample


def nll_of(logits: Tensor, ids: Sequence[int]) -> float:
    """Summed negative log-likelihood of ids in nats; logits [tokens, vocab] stand before each."""
    logprobs = logits[: len(ids)].double().log_softmax(dim=-1)
    return -float(logprobs.gather(1, torch.tensor(list(ids), dtype=torch.int64)[:, None]).sum())


def likeliest_at(sampling: Sampling, step: int) -> bool:
    """Whether the likeliest token is taken at a step."""
    n = sampling.temperature_tokens
    return sampling.temperature == 0 or (n is not None and step >= n)


def first_token(logits: Tensor, strata: str, sample: int) -> int:
    """Sample i's: the ((i mod N) + 1)-th likeliest, the lower id first where two are as likely."""
    rank = sample % int(strata.partition(":")[2])
    scores = logits.double().tolist()
    return sorted(range(len(scores)), key=lambda token: (-scores[token], token))[rank]


def cdf(logits: Tensor, sampling: Sampling) -> np.ndarray:
    """The distribution function over the vocabulary that a uniform number is looked up in.

    Temperature and the knobs one after the other, in the order of docs/perturbation.md.
    """
    scores = logits.double().numpy()
    if sampling.top_n_sigma > 0:
        least = scores.max() - sampling.top_n_sigma * scores[np.isfinite(scores)].std()
        scores = np.where(scores < least, -np.inf, scores)
    scores = scores / sampling.temperature
    if 0 < sampling.top_k < len(scores):
        least = np.sort(scores)[-sampling.top_k]
        scores = np.where(scores < least, -np.inf, scores)
    p = np.exp(scores - scores.max())
    p /= p.sum()
    if sampling.top_p < 1:
        order = np.argsort(-p, kind="stable")
        taken = np.cumsum(p[order]) - p[order] < sampling.top_p
        p[order[~taken]] = 0
        p /= p.sum()
    if sampling.min_p > 0:
        p[p < sampling.min_p * p.max()] = 0
        p /= p.sum()
    if sampling.typical_p < 1:
        surprise = -np.log(np.where(p > 0, p, 1e-300))
        away = np.where(p > 0, np.abs(surprise - np.sum(p * surprise)), np.inf)
        order = np.argsort(away, kind="stable")
        enough = int(np.searchsorted(np.cumsum(p[order]), sampling.typical_p, side="left"))
        p[away > away[order[min(enough, len(p) - 1)]]] = 0
        p /= p.sum()
    for cutoff, of_entropy in ((sampling.epsilon_cutoff, False), (sampling.eta_cutoff, True)):
        if cutoff > 0:
            entropy = -np.sum(p[p > 0] * np.log(p[p > 0]))
            least = min(cutoff, math.sqrt(cutoff) * math.exp(-entropy)) if of_entropy else cutoff
            p[(p < least) & (p < p.max())] = 0
            p /= p.sum()
    if sampling.p_less:
        p[p < min(np.sum(p * p), p.max())] = 0
    return np.cumsum(p) / p.sum()
