"""Two stages: a trained model, and a prior of its codes.

log p(x) >= E_q [log p(x|z) + log p(z) - log q(z|x)] bounds what both stages give together. If the
codes are discrete, q(z|x) is a point and its logarithm is zero: log p(x) >= log p(x|c) + log p(c).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxvae import distributions
from jaxvae.code_priors import CertainCodes, CodePrior, Standardized, log_weight_of
from jaxvae.contracts import Array, Params, Terms
from jaxvae.distributions import log_prob_of
from jaxvae.models.answers import Model
from jaxvae.networks import Grid


class Codes(NamedTuple):
    """The codes of a first stage as functions of its parameters, and what is known of them."""

    # (params, key, example, num_samples) -> codes [K, ...] and log q of them [K]
    draw: Callable[[Params, Array, Any, int], tuple[Any, Array]]
    decode: Callable[..., Any]  # (params, codes, condition) -> p(x|codes)
    encode: Callable[[Params, Any], Any]  # (params, example) -> q(codes|x)
    grids: tuple[Grid, ...] = ()  # of discrete codes, from the top one on
    shape: tuple[int, ...] = ()  # of real latents


def codes_of(first: Any, params: Any, example: Any) -> Codes:
    """The codes of a model. Raises ValueError if no prior of ours can be of them.

    ``params`` and ``example`` may be shapes.
    """
    if first.codes is not None:
        return _discrete_codes(first, params, example)
    if first.encode is None or first.decode is None:
        raise ValueError("a prior needs a run whose model has an encoder and a decoder")
    q = jax.eval_shape(first.encode, params, example)
    z = jax.eval_shape(lambda q: q.sample(jax.random.key(0)), q)
    if isinstance(q, NOT_REAL) or not hasattr(z, "shape") or not hasattr(q, "log_prob"):
        raise ValueError(
            "a prior is of discrete codes, or of an array of real latents that have a density; "
            f"the run's are of a {type(q).__name__}: name another run"
        )

    def draw(params: Params, key: Array, example: Any, num_samples: int) -> tuple[Any, Array]:
        q = first.encode(params, example)
        return distributions.sample_and_log_prob_of(
            q, distributions.sample_noise(q, key, (num_samples,))
        )

    return Codes(draw, first.decode, first.encode, shape=z.shape)


NOT_REAL = (
    *(distributions.Bernoulli, distributions.OneHotCategorical, distributions.Joint),
    *(distributions.PowerSpherical, distributions.VonMisesFisher, distributions.SpikeAndSlab),
)


def _discrete_codes(first: Any, params: Any, example: Any) -> Codes:
    """Codes as a tuple of grids [H, W]; the axes after the second one follow each other."""
    shapes, tree = jax.tree.flatten(jax.eval_shape(first.codes, params, example))
    rows = [shape.shape[0] if len(shape.shape) > 1 else 1 for shape in shapes]
    grids = tuple(
        Grid(height, math.prod(shape.shape) // height, num)
        for height, shape, num in zip(rows, shapes, jax.tree.leaves(first.num_codes), strict=True)
    )

    def as_grids(codes: Any) -> Any:
        leaves = jax.tree.leaves(codes)
        return tuple(c.reshape(g.height, g.width) for c, g in zip(leaves, grids, strict=True))

    def encode(params: Params, example: Any) -> CertainCodes:
        return CertainCodes(as_grids(first.codes(params, example)))

    def draw(params: Params, key: Array, example: Any, num_samples: int) -> tuple[Any, Array]:
        return encode(params, example).sample(key, (1,)), jnp.zeros(1)

    def decode(params: Params, codes: Any, condition: Any = None) -> Any:
        leaves = [c.reshape(s.shape) for c, s in zip(codes, shapes, strict=True)]
        return first.decode_codes(params, jax.tree.unflatten(tree, leaves), condition)

    return Codes(draw, decode, encode, grids)


class Conditions(NamedTuple):
    """What examples are, and what the prior is conditioned on."""

    raw: Callable[[Any], Any]  # split -> raw examples
    preprocess: Any  # (key, raw example) -> example
    pairs: bool
    encoded: Callable[[Any], Any] | None  # raw condition -> what the prior sees
    first: Callable[[Any], Any]  # example -> what the first stage takes
    condition: Callable[[Any], Any]  # example -> what the prior is conditioned on, or None
    shared: bool = False  # whether the first stage has the condition too


class Stages(NamedTuple):
    """The first stage and the prior of its codes. Parameters are {"first_stage", "prior"}."""

    first: Model
    codes: Codes
    prior: CodePrior
    conditions: Conditions

    def law(self, params: Params, condition: Any) -> Any:
        """p(codes|condition)."""
        context = None if condition is None else jnp.reshape(condition, -1)
        law = self.prior.make(params["prior"], context)
        if self.codes.grids:
            return law
        first = params["first_stage"]
        return Standardized(law, first["center"], first["spread"])

    def loss(self, params: Params, key: Array, example: Any, step: Array) -> tuple[Array, Terms]:
        """The prior's loss at codes of an example."""
        key_codes, key_loss = jax.random.split(key)
        first, condition = params["first_stage"], self.conditions.condition(example)
        codes, _ = self.codes.draw(first["model"], key_codes, self.conditions.first(example), 1)
        codes = jax.tree.map(lambda c: lax.stop_gradient(c[0]), codes)
        if not self.codes.grids:
            codes = Standardized(None, first["center"], first["spread"]).standard(codes)
        context = None if condition is None else jnp.reshape(condition, -1)
        return self.prior.loss(params["prior"], key_loss, codes, context)

    def weighed(self, params: Params, key: Array, example: Any, num_samples: int) -> Terms:
        """log p(x|codes), log p(codes) and log q(codes|x) of draws of q, [K] each."""
        key_codes, key_law = jax.random.split(key)
        first, condition = params["first_stage"]["model"], self.conditions.condition(example)
        of_first = self.conditions.first(example)
        codes, log_q = self.codes.draw(first, key_codes, of_first, num_samples)
        x, first_condition = self.first.parts(of_first)
        law = self.law(params, condition)
        decoded = lambda codes: log_prob_of(self.codes.decode(first, codes, first_condition), x)
        keys = jax.random.split(key_law, len(log_q))
        return {
            "likelihood": jax.vmap(decoded)(codes),
            "prior": jax.vmap(lambda key, codes: log_weight_of(law, key, codes))(keys, codes),
            "posterior": log_q,
        }

    def terms(self, params: Params, key: Array, example: Any, num_samples: int) -> Terms:
        """The terms of the bound: the reconstruction, and KL from q to the prior."""
        each = self.weighed(params, key, example, num_samples)
        kl = each["posterior"] - each["prior"]
        terms = {"reconstruction": each["likelihood"].mean(), "kl": kl.mean()}
        return terms | (self.level_terms(params, example) if self.codes.grids else {})

    def level_terms(self, params: Params, example: Any) -> Terms:
        """-log p of each level given the levels above, and of all levels under a uniform prior."""
        first, condition = params["first_stage"]["model"], self.conditions.condition(example)
        codes = self.codes.encode(first, self.conditions.first(example)).loc
        log_probs = self.law(params, condition).log_probs(codes)
        levels = {f"kl_level_{i + 1}": -value for i, value in enumerate(log_probs)}
        uniform = sum(grid.size * math.log(grid.codes) for grid in self.codes.grids)
        return levels | {"kl_uniform_prior": jnp.float32(uniform)}

    def log_weights(self, params: Params, key: Array, example: Any, num_samples: int) -> Array:
        """log p(x|codes) + log p(codes) - log q(codes|x), [K]."""
        each = self.weighed(params, key, example, num_samples)
        weights = each["likelihood"] + each["prior"] - each["posterior"]
        return jnp.broadcast_to(weights, (num_samples,))

    def model(self, init: Callable[[Array, Any], Params]) -> Model:
        """What can be asked of both stages together."""
        conditions, codes = self.conditions, self.codes
        first = lambda params: params["first_stage"]["model"]

        def encode(params: Params, example: Any) -> Any:
            return codes.encode(first(params), conditions.first(example))

        def decode(params: Params, z: Any, condition: Any = None) -> Any:
            return codes.decode(first(params), z, condition if conditions.shared else None)

        def draw(params: Params, key: Array, condition: Any = None) -> Any:
            return self.law(params, condition).sample(key)

        def prior(params: Params, condition: Any = None) -> Any:
            return self.law(params, condition)

        def log_joint(params: Params, example: Any, z: Any) -> Array:
            x, condition = parts(example)
            log_prior = log_prob_of(prior(params, condition), z)
            return log_prob_of(decode(params, z, condition), x) + log_prior

        def parts(example: Any) -> tuple[Any, Any]:
            x, _ = self.first.parts(conditions.first(example))
            return x, conditions.condition(example)

        model = Model(
            init, encode, decode, draw, terms=self.terms, log_weights=self.log_weights, parts=parts
        )
        return model._replace(prior=prior, log_joint=log_joint) if self.prior.density else model
