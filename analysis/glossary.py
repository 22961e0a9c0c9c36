"""What every term, symbol and metric of the report means: one short entry each, as data."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A term of the glossary.

    Attributes:
        term: as the glossary heads it.
        text: what it means.
        forms: regular expression of how it is written in the page; the term itself by default.
    """

    term: str
    text: str
    forms: str = ""

    @property
    def key(self) -> str:
        """The entry's anchor in the page."""
        return f"g-{self.term.replace(' ', '-')}"

    @property
    def pattern(self) -> str:
        """The regular expression that finds it, as a whole word."""
        return rf"(?<![\w@*.-])(?:{self.forms or re.escape(self.term)})(?![\w@*]|-\w)"


_METRICS = (
    Entry("pass@k", "Chance that at least one of k samples of a problem is correct, estimated "
          "without bias from all K, as a mean over problems.", r"pass@(?:k|\d+)(?:_base)?"),
    Entry("success@K", "Share of problems that at least one of the K samples solves."),
    Entry("cover@τ", "Share of problems of whose samples a share τ or more is correct."),
    Entry("accuracy", "Mean share of correct answers (maths); accuracy_flexible takes the number "
          "wherever it stands in the answer.", r"accuracy(?:_flexible)?"),
    Entry("maj@K", "Share of problems whose most frequent answer is correct (maths).",
          r"maj@K(?:_flexible)?"),
    Entry("distinct_n", "Different over all runs of n tokens in a problem's samples: 0 for no "
          "variety, 1 where nothing repeats. It falls with K and with length.",
          r"distinct_[123]"),
    Entry("distinct_2_rarefied", "distinct_2 of a fixed number of pairs of tokens, drawn from all "
          "of a problem's: neither K nor length changes what is compared."),
    Entry("distinct_2_valid", "distinct_2 among the valid samples, rarefied to five."),
    Entry("distinct_2_correct", "distinct_2 among the correct samples, rarefied to five."),
    Entry("ead_2", "Different pairs of tokens over the number expected in uniform draws."),
    Entry("self_bleu", "How much each sample resembles its most similar other one, 0 to 1; high "
          "means alike."),
    Entry("self_bleu_joint", "The same, against all other samples of the problem together."),
    Entry("edit_distance", "Mean share of characters to change from one sample to another."),
    Entry("vendi", "Effective number of different samples of a problem: the exponential of the "
          "entropy of the eigenvalues of their similarity, by shared words and pairs of words."),
    Entry("compression_ratio", "Size of a problem's samples over their compressed size; high means "
          "alike."),
    Entry("unique_ast", "Number of different programs among the samples that compile, names, "
          "comments and dead code aside."),
    Entry("unique_correct", "Number of different correct solutions among a problem's K samples; 0 "
          "where none is correct.",
          r"unique_correct(?:_base)?|distinct correct(?: solutions?)?"),
    Entry("behaviours", "Number of different input/output behaviours among the samples that "
          "compile."),
    Entry("prefix_entropy", "Entropy of the samples' first five tokens, in nats."),
    Entry("distinct_prefixes", "Number of different openings of five tokens."),
    Entry("compile_rate", "Share of samples whose program compiles."),
    Entry("valid_rate", "Share of samples that compile and do something under the asked name; "
          "maths: that give an answer."),
    Entry("clean_perplexity", "How unlikely the unperturbed model finds the samples, per token; 1 "
          "is certain.", "(?:clean_)?perplexity"),
    Entry("nats_per_token", "The logarithm of clean_perplexity."),
    Entry("clean_bits_per_byte", "The same in bits for each byte of text.",
          "(?:clean_)?bits_per_byte"),
    Entry("rep_4", "Share of runs of four tokens that repeat an earlier one within a sample."),
    Entry("truncated", "Share of samples cut off at the token limit."),
    Entry("numeric", "Share of samples that ended because the model's numbers overflowed."),
    Entry("missing", "Samples that never came back; each counts as a failure."),
    Entry("mean_tokens", "Mean length of a sample in tokens."),
    Entry("mean_seconds", "Mean time to generate a sample, in seconds."),
    Entry("mean_chars", "Mean length of a sample in characters."),
    Entry("tokens per correct solution", "All tokens generated over all distinct correct "
          "solutions; problems without one are paid for as well."),
)  # fmt: skip

_SYMBOLS = (
    Entry("σ", "Dose of the noise; in the relative unit the noise is about σ times as long as the "
          "vector it is added to."),
    Entry("σ*", "The dose of noise that calibration chose, on problems not compared here.",
          r"σ\*"),
    Entry("T", "Temperature of sampling: 0 always takes the likeliest token, higher is more "
          "random.", r"T(?= = )|temperatures?"),
    Entry("T*", "The temperature that calibration chose by the same rule, with the same budget.",
          r"T\*|temp-tuned"),
    Entry("ρ", "Measured length of the noise over that of the vector it is added to, "
          "‖ε‖/‖h‖.", r"ρ|rho"),
    Entry("τ", "A share of a problem's samples, in cover@τ."),
    Entry("K", "Samples of each problem.", r"K(?= =| samples)|K(?=$)"),
    Entry("k", "Samples that may be tried, in pass@k.", r"k(?= =|$)"),
    Entry("n", "Number of problems.", r"n(?= =|$)"),
    Entry("p", "How often a difference as large would appear if there were none.",
          r"p(?= <|$| Bonferroni)"),
)  # fmt: skip

_TERMS = (
    Entry("baseline", "The method that all others are held against, named beforehand.",
          "baseline"),
    Entry("candidate", "The method, named before the data were seen, that the verdict is about.",
          "candidates?"),
    Entry("family", "Methods along one dose (all temperatures); of a candidate, the methods that "
          "the protocol holds it against; of problems, a cluster.", "family|families"),
    Entry("cluster", "Problems that are variants of each other, counted as one independent "
          "piece of evidence.", "clusters?|families of problems"),
    Entry("interval", "Range that holds the true value in 95 (or 99) of 100 such studies with "
          "new problems.", "intervals?"),
    Entry("simultaneous band", "Intervals that hold for all methods or points together, not one "
          "at a time.", "simultaneous bands?|bands?"),
    Entry("placebo", "The same test where nothing is to be found: a temperature against the "
          "curve of the other temperatures. A smaller effect is no claim.", "placebos?"),
    Entry("curve", "All temperatures as one line in the plane of correctness and diversity; a "
          "method above it gives more at equal correctness.", "curves?"),
    Entry("sign-flip test", "The test that decides: whether the mean difference is large among "
          "those with the signs of problems flipped at random.", "sign[- ]flips?(?: test)?"),
    Entry("Wilcoxon", "Signed-rank test of the differences, beside the sign flips.",
          "Wilcoxon(?:'s)?"),
    Entry("Bonferroni", "p times the number of comparisons, against chance finds among many."),
    Entry("Holm", "The same aim with less loss: the smallest p times all, the next times one "
          "fewer."),
    Entry("effect", "Rank-biserial correlation: -1 always lower, 0 as often, 1 always higher.",
          "(?:rank-biserial )?effect"),
    Entry("non-inferiority", "Shown not to be worse than the baseline by more than a margin set "
          "beforehand.", "non-inferior(?:ity)?"),
    Entry("power", "Chance to find a difference that is there."),
    Entry("protocol", "What is tested and what decides, written and stored before the data.",
          "protocols?"),
    Entry("verdict", "The protocol's answer: success, partial (code, not maths), null (harm shown "
          "or no gain) or inconclusive.", "verdicts?"),
    Entry("inconclusive", "The data neither show what was asked for nor rule it out.",
          "inconclusive|stays open|undecided"),
    Entry("exploratory", "Found by looking, or with a departure from the protocol: a hint, "
          "no confirmation."),
    Entry("confirmatory", "Named, calibrated and fixed before the data, as the protocol asks."),
    Entry("harm", "Correctness or coherence shown to be worse by more than the margin."),
    Entry("ratio", "Mean of the method over mean of the baseline: 1 is equal."),
    Entry("points", "Percentage points: from 40 % to 45 % are 5 points."),
    Entry("floor", "The difference between two runs of one method with other seeds: nothing "
          "smaller means anything.", "(?:re-run )?floor"),
    Entry("seed", "Root of a run's random numbers.", "seeds?"),
    Entry("calibration", "Choosing a dose on other problems: most distinct correct solutions, "
          "pass@1 not below greedy's by more than the margin.", "calibration"),
    Entry("rarefied", "Brought to an equal number of samples or pairs by drawing at random, so "
          "that amounts don't count."),
    Entry("Pareto front", "Methods that no other beats in both correctness and diversity.",
          "(?:Pareto )?fronts?"),
    Entry("hypervolume", "Area of the plane under a group's front: one number for both "
          "aims.", "hypervolumes?"),
    Entry("ablation", "Methods that differ in one choice only.", "ablations?"),
    Entry("dose", "How strong a method is: σ of noise, temperature of sampling.",
          "doses?|dose–response"),
    Entry("site", "Where noise is added: the embedding (embed) or after a decoder block.",
          "sites?"),
    Entry("scope", "Whether each position gets noise of its own (token) or all share one vector "
          "(sequence)."),
    Entry("drift", "A failing sample that the clean model finds less likely than 99 % of the "
          "baseline's."),
    Entry("greedy", "Always the likeliest token: no randomness."),
    Entry("temp-T", "Sampling at temperature T.", r"temp-\d+(?:\.\d+)?"),
    Entry("nucleus-p", "Sampling from the likeliest tokens that make up a share p.",
          r"nucleus-\d+(?:\.\d+)?"),
    Entry("embednoise-σ", "Noise of dose σ on the model's input, decoded greedily; what follows "
          "names the site or another choice.", r"embednoise-[\w.+-]*\w"),
    Entry("literal-σ", "Noise of dose σ in the paper's formula read to the letter, far stronger.",
          r"literal-[\w.+-]*\w"),
    Entry("rsp-N", "Random soft prompt: N random vectors added to the prompt.",
          r"rsp-[\w.+-]*\w|random soft prompt"),
    Entry("prefix-N", "N random characters before the prompt.", r"prefix-\d+|random prefix"),
    Entry("dummy-N", "N copies of a fixed token after the prompt, without noise: a control.",
          r"dummy-\d+"),
)  # fmt: skip

GLOSSARY = {entry.term: entry for entry in (*_METRICS, *_SYMBOLS, *_TERMS)}


def finder() -> re.Pattern[str]:
    """Finds any term: the name of the group that matched is `t` and its place in `GLOSSARY`.

    Longer terms win: σ* is not σ, distinct_2_valid not distinct_2.
    """
    order = sorted(
        enumerate(GLOSSARY.values()), key=lambda item: (-len(item[1].term), item[1].term)
    )
    return re.compile("|".join(f"(?P<t{i}>{entry.pattern})" for i, entry in order))


def entry_of(found: re.Match[str]) -> Entry:
    """The entry of a match of `finder`."""
    group = found.lastgroup or ""
    return list(GLOSSARY.values())[int(group.removeprefix("t"))]
