"""The members of the library, from the tables of its code, with what the site says of each.

``python notebooks/tables.py`` prints what a member lacks: a first sentence, a source, or a row in
the tests. The build of the site stops at the first, and ``tests/test_book.py`` finds all.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxvae import (
    bounds,
    code_priors,
    distributions,
    divergences,
    evaluation,
    expectations,
    families,
    likelihoods,
    networks,
    posteriors,
    priors,
    quantizers,
    schedules,
    settings,
)
from jaxvae.evaluation import disentanglement
from jaxvae.expectations import contract
from jaxvae.families import objectives
from jaxvae.models import cells, missingness

TESTS = Path(__file__).parent.parent / "tests"
PAPER = re.compile(
    r"(?P<who>(?:[Vv]an (?:den? )?|De )?[A-Z][\w’'-]+"
    r"(?:(?:, [A-Z][\w’'-]+)* (?:&|and) (?:De )?[A-Z][\w’'-]+| et al\.)? (?:19|20)\d\d\b)?"
    r"(?:[,;:]? \(?|\)? ?\(?)?(?P<where>arXiv:\d{4}\.\d{4,5}|doi:[^\s;,]+[^\s;,.)])?"
)


class Kind(NamedTuple):
    """A table of members that do the same job."""

    title: str
    text: str  # what the page says above the table
    table: Mapping[str, Any]
    tests: tuple[str, ...]  # files of tests with a row for each member; none are looked for in ()
    every: str = ""  # what a file says where it goes through the whole table; else names count
    textbook: frozenset[str] = frozenset()  # members that follow no paper
    facts: Callable[[str, Any], dict[str, str]] = lambda name, member: {}  # further columns


class Row(NamedTuple):
    """What the site says of a member."""

    name: str
    member: Any
    sentence: str  # the first sentence of the docstring
    source: str  # papers, with links; or textbook
    facts: dict[str, str]


def _of_estimator(name: str, member: Any) -> dict[str, str]:
    return {
        "latents": _kinds(member.latents),
        "unbiased": "yes" if member.unbiased else "no",
        "samples": f"≥ {member.min_samples}",
        "f,&nbsp;∇f": f"{member.evaluations(2, 1, 2)},&nbsp;{member.gradient_evaluations(2, 1, 2)}",
    }


def _kinds(latents: frozenset[str]) -> str:
    if latents >= contract.ANY:
        return "any"
    if latents >= contract.DISCRETE:
        latents = latents - contract.DISCRETE | {"discrete"}
    return ", ".join(sorted(latents))


def _of_bound(name: str, member: Any) -> dict[str, str]:
    facts = _of_estimator(name, member)
    del facts["f,&nbsp;∇f"]
    return {"estimates": f"`{member.estimates}`"} | facts


def _settings(name: str, member: Any) -> dict[str, str]:
    """The settings of a function, which are flags, with their defaults."""
    known = settings.parameters_of(member)
    flags = (f"`--{n.replace('_', '-')} {_word(p.default)}`" for n, p in known.items())
    return {"settings": " ".join(flags)}


def _word(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _with_settings(facts: Callable) -> Callable[[str, Any], dict[str, str]]:
    return lambda name, member: facts(name, member) | _settings(name, member)


def _public(module: Any, wanted: Callable[[Any], bool]) -> dict[str, Any]:
    return {name: getattr(module, name) for name in module.__all__ if wanted(getattr(module, name))}


def _is_score(member: Any) -> bool:
    return inspect.isfunction(member) and bool(inspect.signature(member).parameters)


def _is_density(member: Any) -> bool:
    return dataclasses.is_dataclass(member) and hasattr(member, "log_prob")


KINDS = {
    "estimators": Kind(
        "Gradient estimators",
        "An estimator is `(key, q, f, num_samples) -> scalar`. Its gradient estimates the gradient "
        "of $\\mathbb{E}_q f$. `--estimator NAME` chooses one for discrete latents. The last two "
        "columns say how many samples it needs, and how often it evaluates $f$ and the gradient of "
        "$f$ for two samples of one binary latent.",
        expectations.ESTIMATORS,
        ("test_expectations.py",),
        "in ESTIMATORS.items()",
        frozenset({"enumeration"}),
        _of_estimator,
    ),
    "bounds": Kind(
        "Bounds on log p(x)",
        "A bound is `(key, q, log_joint, num_samples) -> scalar`, in nats. Its value estimates the "
        "bound that the first column names. `--bound NAME` chooses one.",
        bounds.BOUNDS,
        ("test_measurements.py",),
        "TABLE = ESTIMATORS | bounds.BOUNDS",
        facts=_of_bound,
    ),
    "posteriors": Kind(
        "Posteriors q(z|x)",
        "`--posterior NAME` chooses one in the family `flat`. Other families have theirs.",
        posteriors.POSTERIORS,
        ("test_models.py",),
        '"posterior", posteriors.POSTERIORS',
        frozenset({"point", "bernoulli", "categorical", "multivariate_normal"}),
        _settings,
    ),
    "priors": Kind(
        "Priors p(z)",
        "`--prior NAME` chooses one. The family `flat` also has `--prior vampprior` and "
        "`vampprior_data`, which need the encoder.",
        priors.PRIORS,
        ("test_tables.py",),
        '"prior": priors.PRIORS',
        frozenset({"standard_normal", "mixture"}),
        _settings,
    ),
    "code-priors": Kind(
        "Priors over codes",
        "They are learned after the model whose codes they are of: `jaxvae train prior --of RUN "
        "--prior NAME`.",
        code_priors.CODE_PRIORS,
        ("test_code_priors.py",),
        facts=_settings,
    ),
    "likelihoods": Kind(
        "Likelihoods p(x|z)",
        "`--likelihood NAME` chooses one. The second column names the preprocessing of pixels "
        "(`--pixels`) on whose values the density is defined.",
        likelihoods.LIKELIHOODS,
        ("test_distributions.py",),
        "in LIKELIHOODS.items()",
        frozenset(
            {"bernoulli", "normal", "normal_decoded", "laplace", "laplace_learned", "categorical"}
            | {"poisson", "negative_binomial"}
        ),
        lambda name, member: (
            {
                "pixels": ", ".join(f"`{kind}`" for kind in _likelihood(member).support),
            }
            | _settings(name, member)
        ),
    ),
    "divergences": Kind(
        "Divergences between samples",
        "They compare codes of a batch with draws of the prior. `--divergence NAME` adds one to "
        "the loss, and `--divergence-weight` weighs it.",
        divergences.DIVERGENCES,
        ("test_sample_divergences.py",),
        '"name", DIVERGENCES',
    ),
    "kl": Kind(
        "KL divergences in closed form",
        "`divergences.kl(q, p)` uses these, in nats. For all other pairs it is estimated from "
        "draws. The formulas are of one coordinate where the densities are independent.",
        {
            f"{q.__name__} ‖ {p.__name__}": formula
            for pairs in (divergences.FACTORIZED_KL, divergences.JOINT_KL)
            for (q, p), formula in pairs.items()
        },
        ("test_divergences.py",),
        "in FACTORIZED_KL",
        textbook=frozenset({"*"}),
    ),
    "distributions": Kind(
        "Distributions",
        "A distribution is a pytree with `sample(key, shape)` and `log_prob(x)`, in nats.",
        _public(distributions, _is_density),
        (),
        textbook=frozenset(
            {"Bernoulli", "Beta", "Box", "Categorical", "Dirichlet", "Exponential"}
            | {"Hierarchy", "Independent", "Joint", "Laplace", "MarkovChain", "Mixture"}
            | {"MultivariateNormal", "NegativeBinomial", "Normal", "OneHotCategorical", "Point"}
            | {"Poisson", "SphericalUniform", "StudentT", "Truncated"}
        ),
    ),
    "networks": Kind(
        "Pairs of networks",
        "`--network NAME` chooses an encoder and a decoder.",
        networks.PAIRS,
        ("test_tables.py",),
        '"network": networks.PAIRS',
        frozenset({"mlp", "conv", "residual"}),
        _settings,
    ),
    "quantizers": Kind(
        "Quantizers",
        "`--quantizer NAME` says how the family `codebook` makes codes.",
        quantizers.QUANTIZERS,
        ("test_quantizers.py",),
        facts=_settings,
    ),
    "kl-costs": Kind(
        "Costs of the KL",
        "`--kl-cost NAME` says what a nat of KL costs in the loss.",
        objectives.KL_COSTS,
        ("test_objectives.py",),
        facts=_settings,
    ),
    "warmups": Kind(
        "Warm-ups of the KL",
        "`--kl-warmup NAME` says how the weight of the KL grows with the step.",
        schedules.WARMUPS,
        ("test_schedules.py",),
        textbook=frozenset({"none"}),
        facts=_settings,
    ),
    "missingness": Kind(
        "Reasons of missing cells",
        "`--missingness NAME` says in the family `tabular` why cells are missing.",
        missingness.MISSINGNESS,
        (),
        textbook=frozenset({"ignorable"}),
        facts=_settings,
    ),
    "real-columns": Kind(
        "Densities of real columns",
        "`--real-family NAME` says in the family `tabular` what density a real cell has.",
        cells.REAL_FAMILIES,
        ("test_missing.py",),
        '"family", cells.REAL_FAMILIES',
        frozenset({"normal"}),
    ),
    "metrics": Kind(
        "Metrics of a trained model",
        "`jaxvae evaluate WORKDIR --NAME` computes one, beside the bounds and log p(x).",
        evaluation.METRICS,
        ("test_metrics.py", "test_modalities.py", "test_speech.py"),
        textbook=frozenset({"reconstructions"}),
    ),
    "disentanglement": Kind(
        "Scores of disentanglement",
        "`jaxvae evaluate WORKDIR --factors` reports them. Here they are functions of codes and "
        "factors, `evaluation.disentanglement.NAME`.",
        _public(disentanglement, _is_score),
        ("test_disentanglement.py",),
        textbook=frozenset({"discretized", "entropy", "mutual_information"}),
    ),
    "samples": Kind(
        "Scores of samples",
        "They are functions of features, `evaluation.samples.NAME`.",
        {
            name: getattr(evaluation.samples, name)
            for name in ("frechet", "precision_recall", "density_coverage", "data_copying")
        },
        ("test_sample_quality.py",),
    ),
    "sources": Kind(
        "Where the latents of samples come from",
        "`jaxvae sample WORKDIR --prior NAME` fits one to a trained model.",
        evaluation.SOURCES,
        ("test_metrics.py",),
        '"name", SOURCES',
        frozenset({"model"}),
    ),
}


def _likelihood(member: Callable) -> Any:
    required = settings.parameters_of(member).keys()
    takes = [name for name in inspect.signature(member).parameters if name not in required]
    return member(*[4 for _ in takes])  # levels


# What is said of a member


def document(member: Any) -> str:
    """The docstring of a member, or of the function that made it."""
    text = inspect.getdoc(member)
    if not text and "<locals>" in getattr(member, "__qualname__", ""):
        maker = member.__qualname__.partition(".")[0]
        text = inspect.getdoc(getattr(inspect.getmodule(member), maker))
    return text or ""


def sentence(text: str) -> str:
    """The first sentence of a docstring, in one line."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[a-zα-ω)\]`0-9]\.) (?=[A-Z`])", paragraph)[0]


def papers(text: str) -> list[str]:
    """The papers that a docstring cites, as links where it gives an address."""
    found: list[str] = []
    for match in PAPER.finditer(" ".join(text.split())):
        who, where = (match["who"] or "").strip(), match["where"] or ""
        if not re.search(r"(19|20)\d\d$", who) and not where:
            continue
        site = "https://arxiv.org/abs/" if where.startswith("arXiv:") else "https://doi.org/"
        link = f"[{where}]({site}{where.partition(':')[2]})" if where else ""
        who = who if re.search(r"(19|20)\d\d$", who) else ""
        found.append(", ".join(part for part in (who, link) if part))
    return list(dict.fromkeys(found))


def source(kind: Kind, name: str) -> str:
    """The papers of a member, or of the members that its docstring names; or textbook."""
    text = document(kind.table[name])
    cited = papers(text)
    for other in re.findall(r"``(?:\w+\.)?(\w+)``", text):
        if not cited and other != name:
            cited = _papers_of(other)
    if cited:
        return "; ".join(cited)
    return "textbook" if {name, "*"} & kind.textbook else ""


def _papers_of(name: str) -> list[str]:
    for kind in KINDS.values():
        for key, member in kind.table.items():
            if name in (key, getattr(member, "__name__", key)):
                return papers(document(member))
    return []


def has_test(kind: Kind, name: str) -> bool:
    """Whether the kind's tests go through its table, or name the member."""
    text = "\n".join((TESTS / file).read_text() for file in kind.tests)
    if kind.every:
        return kind.every in text
    names = {name, getattr(kind.table[name], "__name__", name)}
    return any(re.search(rf"\b{re.escape(each)}\b", text) for each in names)


def rows(kind: Kind) -> list[Row]:
    """What the site's table says of each member, in the order of the code's table."""
    return [
        Row(name, member, sentence(document(member)), source(kind, name), kind.facts(name, member))
        for name, member in kind.table.items()
    ]


def lacks() -> list[str]:
    """What members lack, a line each: a first sentence, a source, or a row in the tests."""
    missing = []
    for key, kind in KINDS.items():
        for row in rows(kind):
            if not row.sentence:
                missing.append(f"{key}: {row.name} has no docstring")
            if not row.source:
                missing.append(f"{key}: {row.name} names no paper; add one, or say textbook")
            if kind.tests and not has_test(kind, row.name):
                missing.append(f"{key}: {row.name} has no row in {', '.join(kind.tests)}")
    return missing + _families_lack()


def _families_lack() -> list[str]:
    every = "PRESETS = families.presets()"
    missing = [] if every in (TESTS / "test_families.py").read_text() else [f"no test has {every}"]
    for name, family in families.FAMILIES.items():
        if not inspect.getdoc(family.Config):
            missing.append(f"families: {name} has no docstring")
        if not family.presets:
            missing.append(f"families: {name} has no preset, and so no row in the tests")
        if not family_papers(family):
            missing.append(f"families: {name} names no paper, nor does a preset")
    return missing + [f"presets: {n} has no sentence" for n, (text, _) in presets() if not text]


def presets() -> list[tuple[str, tuple[str, Any]]]:
    """Every preset with its sentence and its configuration."""
    return list(families.presets().items())


def family_papers(family: Any) -> list[str]:
    """The papers of a family: of its configuration, its presets, and its file."""
    texts = [inspect.getdoc(family.Config) or "", *(text for text, _ in family.presets.values())]
    cited = [paper for text in texts for paper in papers(text)]
    return cited or papers(inspect.getdoc(inspect.getmodule(family.Config)) or "")


if __name__ == "__main__":
    print("\n".join(lacks()) or "Every member has a first sentence, a source and a test.")
    sys.exit(bool(lacks()))
