"""Examples in docstrings are run; functions of many parameters explain them."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import jaxvae

MODULES = [
    module.name
    for module in pkgutil.walk_packages(jaxvae.__path__, "jaxvae.")
    if not module.name.endswith("__main__")
]
FRONT_DOORS = {
    "jaxvae.datasets.loading": ("load",),
    "jaxvae.training.loop": ("fit",),
    "jaxvae.training.algorithms": ("gradient_descent",),
    "jaxvae.evaluation.likelihoods": ("evaluate_elbo", "estimate_log_likelihood"),
    "jaxvae.models.vae": ("vae", "negative_elbo", "negative"),
    "jaxvae.models.answers": ("answers",),
    "jaxvae.runs.training": ("train",),
    "jaxvae.runs.loading": ("load",),
    "jaxvae.settings": ("changed",),
}


def has_examples(module: ModuleType) -> bool:
    return any(test.examples for test in doctest.DocTestFinder().find(module))


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    module = importlib.import_module(name)
    if has_examples(module):
        result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
        assert not result.failed


@pytest.mark.parametrize("name", FRONT_DOORS)
def test_front_doors_have_an_example(name: str) -> None:
    module = importlib.import_module(name)
    for function in FRONT_DOORS[name]:
        assert ">>>" in (inspect.getdoc(getattr(module, function)) or ""), function


def functions(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """The public functions that a module defines."""
    for name, member in vars(module).items():
        written_here = getattr(member, "__module__", "") == module.__name__
        if inspect.isfunction(member) and written_here and not name.startswith("_"):
            yield name, member


@pytest.mark.parametrize("name", MODULES)
def test_five_parameters_are_explained(name: str) -> None:
    for function, member in functions(importlib.import_module(name)):
        if len(inspect.signature(member).parameters) >= 5:
            assert "Args:" in (inspect.getdoc(member) or ""), function
