"""Configurations as data: members by name, unique names, JSON, what an unknown name belongs to."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from jaxvae import families, posteriors
from jaxvae.ranges import Count
from jaxvae.settings import (
    Choice,
    Chosen,
    argument_texts,
    changed,
    choices_of,
    fields_of,
    from_json,
    parameters_of,
    summary_of,
    to_json,
)

PRESETS = families.presets()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_same_after_a_round_trip_through_json(name: str) -> None:
    text, config = PRESETS[name]
    written = json.loads(json.dumps(to_json(config)))
    read = from_json(type(config)(), written)
    assert read == config
    assert to_json(read) == written
    assert text


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_member_of_every_choice_survives_the_round_trip(family: str) -> None:
    config = families.FAMILIES[family].Config()
    for field, choice in choices_of(config):
        for member, function in choice.members().items():
            chosen = choice(member)
            assert from_json(chosen, to_json(chosen)) == chosen
            assert len(summary_of(function)) > 10, f"{field} {member} needs a docstring"


def names_of(choice: Choice) -> set[str]:
    """Every name that can be set once a member of a choice is chosen, whichever it is."""
    names: set[str] = set()
    for function in choice.members().values():
        for name, parameter in parameters_of(function).items():
            names.add(name)
            if isinstance(parameter.default, Chosen):
                names |= names_of(parameter.default.choice)
    return names


@pytest.mark.parametrize("family", families.FAMILIES)
def test_names_are_unique_whatever_members_are_chosen_together(family: str) -> None:
    """Two settings of one name would be one flag."""
    fields = fields_of(families.FAMILIES[family].Config())
    of_members = {n: names_of(s.value.choice) for n, s in fields.items() if _is_choice(s.value)}
    for field, names in of_members.items():
        assert not names & set(fields), field
    for one, other in itertools.combinations(of_members.values(), 2):
        assert not one & other


def _is_choice(value: Any) -> bool:
    return isinstance(value, Chosen)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_an_argument_that_a_docstring_explains_is_a_parameter(family: str) -> None:
    for field, choice in choices_of(families.FAMILIES[family].Config()):
        for member, function in choice.members().items():
            given = choice(member).required
            explained = argument_texts(function).keys() - set(given)
            assert explained <= parameters_of(function).keys() | {"params"}, (field, member)


def test_the_member_that_is_there_keeps_its_values() -> None:
    config = families.preset("vampprior", components=20)
    assert changed(config, prior="vampprior").prior.components == 20
    assert changed(config, prior="mixture").prior.components == 10


def test_settings_of_inner_members_are_set_by_their_names() -> None:
    config = families.preset("digits", bound="sampled_elbo", estimator="rloo", num_samples=4)
    assert config.bound.estimator.name == "rloo"
    assert config.bound.num_samples == 4
    warm = families.preset("digits", kl_warmup="cyclical", kl_warmup_steps=7)
    assert warm.bound.kl_cost.kl_warmup.kl_warmup_steps == 7


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "another member's": ({"flow_steps": 3}, "flow_steps belongs to posterior planar, radial"),
    "of the member before": (
        {"bound": "iwae", "estimator": "rloo"},
        "estimator belongs to bound elbo, sampled_elbo; here it is bound iwae",
    ),
    "nearest": ({"hiden": (3,)}, "did you mean hidden?"),
    "member": ({"posterior": "planr"}, "Did you mean planar?"),
    "range": ({"latent": 0}, "latent must be at least 1; it was 0"),
    "inner range": ({"kl_weight": -1.0}, "kl_weight must be at least 0; it was -1.0"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake: str) -> None:
    named, words = MISTAKES[mistake]
    with pytest.raises(ValueError, match=words.replace("?", r"\?")):
        families.preset("digits", **named)


def test_json_of_a_member_that_is_not_there_is_refused() -> None:
    written = to_json(families.preset("digits"))
    written["posterior"] = {"is": "planr"}
    with pytest.raises(ValueError, match="no 'planr'"):
        from_json(families.preset("digits"), written)


def test_a_users_posterior_is_a_member_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def mine(latent: int, sharpness: Count = 2) -> posteriors.Posterior:
        """A posterior of my own."""
        return posteriors.normal(latent)

    monkeypatch.setitem(posteriors.CONTINUOUS, "mine", mine)
    config = families.preset("digits", posterior="mine", sharpness=3)
    assert config.posterior.sharpness == 3
    assert from_json(families.preset("digits"), to_json(config)) == config


def test_a_choice_calls_its_function_with_what_it_asks_for() -> None:
    shape = Choice({"circle": lambda size, thickness=1.0: (size, thickness)})
    assert shape("circle", thickness=2.0)(size=3, colour="red") == (3, 2.0)
    with pytest.raises(ValueError, match="circle has no width; it has thickness"):
        shape("circle", width=3)
    with pytest.raises(ValueError, match="no 'square'"):
        shape("square")
