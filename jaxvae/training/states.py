"""Takes parameters out of a training state, and puts them into a fresh one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from jaxvae import processes
from jaxvae.contracts import Params
from jaxvae.training.algorithms import State


def trained_players(state: State) -> dict[str, Params]:
    """The parameters to evaluate, by player: the moving average if the state has one."""
    return state.params if state.average is None else state.average


def trained(state: State, player: str = "model") -> Params:
    """The parameters of one player to evaluate: the moving average if the state has one."""
    return trained_players(state)[player]


def start_from(state: State, other: State | Mapping[str, Params]) -> State:
    """A fresh state with the parameters of another one, for the players that both have.

    ``other`` is a state or ``{player: params}``. The moving average of a state is taken too. If
    ``other`` has none, the average begins at the parameters. Step, key and the optimizers' states
    of ``state`` stay. Some optimizers' states begin as a copy of the parameters, as for a
    schedule-free one. Such an optimizer needs the parameters from ``init`` instead.

    Raises ValueError if no player is in both, or if a player's arrays differ in name, shape or
    type.
    """
    params = other.params if isinstance(other, State) else dict(other)
    average = (other.average if isinstance(other, State) else None) or params
    both = [name for name in state.params if name in params]
    if not both:
        raise ValueError(
            f"no player is in both: the state has {sorted(state.params)}, what it is to start from "
            f"has {sorted(params)}; parameters alone are given as {{player: params}}"
        )
    for name in both:
        _check_same(name, params[name], state.params[name])
    place = lambda a: getattr(a, "sharding", None)
    put = lambda then, now: (
        then if place(then) == place(now) else jax.device_put(processes.local(then), place(now))
    )
    taken = lambda source, fresh: (
        fresh | {name: jax.tree.map(put, source[name], fresh[name]) for name in both}
    )
    new_average = None if state.average is None else taken(average, state.average)
    return state._replace(params=taken(params, state.params), average=new_average)


def _check_same(player: str, then: Params, now: Params) -> None:
    kinds_then, kinds_now = _kinds(then), _kinds(now)
    names = sorted({*kinds_then, *kinds_now})
    differing = [name for name in names if kinds_then.get(name) != kinds_now.get(name)]
    if differing:
        first = differing[0]
        raise ValueError(
            f"the parameters of {player} are of another model: {len(differing)} arrays differ, the "
            f"first is {first}, {kinds_then.get(first, 'absent')} then and "
            f"{kinds_now.get(first, 'absent')} now"
        )


def _kinds(tree: Any) -> dict[str, str]:
    """Type and shape of every array by its name."""
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return {
        name(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
