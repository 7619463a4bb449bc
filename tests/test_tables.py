"""The tables that a command line is made of: names, defaults and ranges of settings."""

from __future__ import annotations

import inspect
import itertools
import math
import typing
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxvae import likelihoods, networks, posteriors, priors, ranges, schedules

KEY = jax.random.key(0)
GIVEN: dict[str, Any] = {  # by the model
    "latent": 3,
    "levels": 4,
    "size": 5,
    "output": (8, 8, 1),
    "end": 1.0,
    "kl_warmup": schedules.no_warmup,
}
TABLES: dict[str, typing.Mapping[str, Callable]] = {
    "posterior": posteriors.POSTERIORS,
    "prior": priors.PRIORS,
    "likelihood": likelihoods.LIKELIHOODS,
    "network": networks.PAIRS,
    "warm-up": schedules.WARMUPS,
}
MEMBERS = {f"{kind} {name}": f for kind, table in TABLES.items() for name, f in table.items()}


def settings(function: Callable) -> dict[str, Any]:
    """The arguments that have defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def given(function: Callable) -> dict[str, Any]:
    """The arguments that have none."""
    names = inspect.signature(function).parameters
    return {name: GIVEN[name] for name in names if name not in settings(function)}


def range_of(function: Callable, name: str) -> ranges.Range | None:
    hint = typing.get_type_hints(function, include_extras=True)[name]
    return next((m for m in getattr(hint, "__metadata__", ()) if isinstance(m, ranges.Range)), None)


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_is_called_with_what_the_model_gives_it_and_its_defaults(name: str) -> None:
    MEMBERS[name](**given(MEMBERS[name]), **settings(MEMBERS[name]))
    for setting, default in settings(MEMBERS[name]).items():
        interval = range_of(MEMBERS[name], setting)
        assert (interval is None) == isinstance(default, str | bool)
        if interval:
            interval.check(setting, default)


def test_first_sentences_are_short_enough_for_help() -> None:
    first = {name: (f.__doc__ or "").splitlines()[0] for name, f in MEMBERS.items()}
    assert not [text for text in first.values() if len(text) > 80 or not text.endswith(".")]


def test_no_two_members_of_different_tables_share_a_setting() -> None:
    names = {
        kind: {setting for f in table.values() for setting in settings(f)}
        for kind, table in TABLES.items()
    }
    for first, second in itertools.combinations(names, 2):
        assert not names[first] & names[second]


@pytest.mark.parametrize("name", posteriors.POSTERIORS)
def test_a_posterior_names_a_prior_of_its_latents(name: str) -> None:
    posterior = posteriors.POSTERIORS[name](4)
    q = posterior.make(posterior.init(KEY), jnp.zeros(posterior.size))
    prior = posterior.prior(4)
    p = prior.make(prior.init(KEY))
    assert jax.eval_shape(q.sample, KEY) == jax.eval_shape(p.sample, KEY)
    assert not prior.init(KEY)
    assert (posterior.latents == "continuous") == (name not in posteriors.DISCRETE)


@pytest.mark.parametrize("name", priors.PRIORS)
def test_a_prior_is_over_the_latents_and_its_extra_ones(name: str) -> None:
    prior = priors.PRIORS[name](4)
    p = prior.make(prior.init(KEY))
    assert jax.eval_shape(p.sample, KEY).shape == (4 + prior.extra,)


def test_a_posterior_of_ones_own_is_a_row() -> None:
    posteriors.CONTINUOUS["mine"] = posteriors.normal
    try:
        assert posteriors.POSTERIORS["mine"] is posteriors.normal
    finally:
        del posteriors.CONTINUOUS["mine"]


CHECKS: list[tuple[Any, Any, str | None]] = [
    (ranges.Count, 1, None),
    (ranges.Widths, (3, 1), None),
    (ranges.Widths, (), None),
    (ranges.Amount, 0.0, None),
    (ranges.Share, 0.0, None),
    (ranges.Share, 1.0, None),
    (ranges.Count, 0, "latent must be at least 1; it was 0"),
    (ranges.Widths, (200, 0), r"latent must be at least 1; it was \(200, 0\)"),
    (ranges.Amount, -0.5, "latent must be at least 0; it was -0.5"),
    (ranges.Amount, math.nan, "latent must be at least 0; it was nan"),
    (ranges.Amount, math.inf, "latent must be finite and at least 0; it was inf"),
    (ranges.Positive, 0.0, "latent must be above 0; it was 0.0"),
    (ranges.Share, 1.5, "latent must be at least 0 and at most 1; it was 1.5"),
]


@pytest.mark.parametrize("annotation, value, words", CHECKS)
def test_ranges(annotation: Any, value: Any, words: str | None) -> None:
    (interval,) = annotation.__metadata__
    if words is None:
        interval.check("latent", value)
    else:
        with pytest.raises(ValueError, match=words):
            interval.check("latent", value)


@pytest.mark.parametrize("name", ["conv", "residual"])
def test_a_pair_of_images_refuses_vectors(name: str) -> None:
    with pytest.raises(ValueError, match=r"needs images \[H, W, C\].*\(64,\): use mlp"):
        networks.PAIRS[name](4, (64,))
    with pytest.raises(ValueError, match="needs at least one width"):
        networks.PAIRS[name](4, (8, 8, 1), hidden=())
