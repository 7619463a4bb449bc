"""The contract of networks, and networks made of others."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

Array = jax.Array


class Network(NamedTuple):
    """A function of one example with parameters.

    ``apply`` is deterministic. ``train`` is the same network with the noise that only training
    has, such as dropout; it is None if there is none.
    """

    init: Callable[[Array, Any], Any]  # (key, x) -> params
    apply: Callable[[Any, Any], Any]  # (params, x) -> output
    train: Callable[[Any, Array, Any], Any] | None = None  # (params, key, x) -> output


def in_training(network: Network, key: Array) -> Network:
    """The network with the training noise of ``key``; the same network where it has none.

    The noise is drawn once: every call of ``apply`` has the same, such as the same dropped units.
    """
    train = network.train
    if train is None:
        return network
    return network._replace(apply=lambda params, x: train(params, key, x))


def wrapped(network: Network, wrap: Callable[[Callable], Callable]) -> Network:
    """The network whose ``apply`` and ``train`` are wrapped, ``wrap((params, x) -> output)``."""
    train = network.train
    if train is None:
        return network._replace(apply=wrap(network.apply))

    def wrapped_train(params: Any, key: Array, x: Any) -> Any:
        return wrap(lambda params, x: train(params, key, x))(params, x)

    return network._replace(apply=wrap(network.apply), train=wrapped_train)


def of_input(network: Network, change: Callable[[Any], Any]) -> Network:
    """The network of ``change(x)``."""
    changed = wrapped(network, lambda apply: lambda params, x: apply(params, change(x)))
    return changed._replace(init=lambda key, x: network.init(key, change(x)))


def on_slice(network: Network, part: slice) -> Network:
    """The network of a slice of its input [D].

    It makes the decoder of a latent vector whose leading dimensions belong to the prior.
    """
    return of_input(network, lambda x: x[part])


def scaled_input(network: Network, factor: float) -> Network:
    """The network of ``factor * x``."""
    return of_input(network, lambda x: factor * x)


def summed(networks: Mapping[str, Network]) -> Network:
    """The sum of networks of one input, whose parameters are by name."""

    def init(key: Array, x: Any) -> Any:
        keys = jax.random.split(key, len(networks))
        pairs = zip(networks.items(), keys, strict=True)
        return {name: network.init(each, x) for (name, network), each in pairs}

    def apply(params: Any, x: Any) -> Any:
        outputs = [network.apply(params[name], x) for name, network in networks.items()]
        return functools.reduce(operator.add, outputs)

    return Network(init, apply)


def renamed(network: Network, names: Mapping[str, str]) -> Network:
    """The network whose layers, in nested dictionaries of parameters, have other names.

    ``names`` maps each old name to a new one; other names stay. Initial values stay as well, which
    in Flax depend on the old names.
    """
    old_names = {new: old for old, new in names.items()}
    changed = wrapped(
        network, lambda apply: lambda params, x: apply(_renamed_tree(params, old_names), x)
    )
    return changed._replace(init=lambda key, x: _renamed_tree(network.init(key, x), names))


def _renamed_tree(tree: Any, names: Mapping[str, str]) -> Any:
    if not isinstance(tree, dict):
        return tree
    return {names.get(name, name): _renamed_tree(value, names) for name, value in tree.items()}
