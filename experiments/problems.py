"""Problems on which gradient estimators are compared: toys, linear Gaussians, VAEs.

A problem is an expectation E_q f or, where ``joint`` is set, a bound on log p(x), with f = log p(x,
z). Each takes its settings from ``Settings``. Those with data have units of examples: batches that
stay the same for all estimators.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from jaxvae import bounds, command_line, datasets, expectations, models, runs
from jaxvae.contracts import Array
from jaxvae.distributions import Bernoulli, Normal

LATENTS = {"bits": "binary", "classes": "categorical", "joint": "mixed"}  # of families of models


class Problem(NamedTuple):
    """An expectation whose gradient is to be estimated."""

    latents: str  # continuous, binary or categorical
    params: Any  # where the gradient is taken, first of all
    make: Callable[[Any, Any], tuple[Any, Callable]]  # (params, x) -> q, f, of one example
    joint: bool = False  # whether f is log p(x, z) and q a posterior
    examples: Any = None  # units of examples, a tree of [U, B, ...]
    prior: Callable[[Any], Any] | None = None  # params -> p(z), for the bounds that need it
    gradient: Callable[[Any], Any] | None = None  # the true one, where it is known in closed form
    train: Callable[[int], Any] | None = None  # steps -> params, by one estimator for all


@dataclasses.dataclass(frozen=True)
class Settings:
    """What problems depend on; each takes what it needs."""

    target: float = 0.45
    """Target t of (b - t)^2 (toy)."""
    logit: float = 0.0
    """Logit that latents share or start from (toy, liu_kool)."""
    rate: float = 1.0
    """k of (x - k)^2, exp(-k x^2) and cos(k x) (square, exponential, cosine)."""
    latent: int = 20
    """Dimensions (linear_gaussian) or bits (binary_vae; 3 and --batch-size 1 are exact)."""
    units: int = 8
    """Batches of examples whose gradients are estimated (those with data)."""
    batch_size: int = 50
    """Examples in a batch (those with data)."""
    data_dir: str | None = None
    """Folder of prepared tensorflow-datasets (vae)."""
    preset: str = "binary"
    """Preset of jaxvae train (vae)."""
    arguments: str = ""
    """More settings of jaxvae train, as one word: "--hidden 200 200 --estimator arm" (vae)."""
    seed: int = 0
    """Seed of the problem's own random numbers."""


def toy(settings: Settings) -> Problem:
    """E (b - t)^2 of one bit.

    Tucker et al. 2017, arXiv:1703.07370, have t = 0.45, and Grathwohl et al. 2017 have t = 0.499.
    """
    f = lambda b: jnp.sum((b - settings.target) ** 2)
    return Problem(
        "binary", {"logits": jnp.full(1, settings.logit)}, lambda p, x: (Bernoulli(p["logits"]), f)
    )


def titsias_shi(settings: Settings) -> Problem:
    """E 1/D sum_i (b_i - 0.499)^2 of 200 bits (Titsias & Shi 2021, arXiv:2111.05300)."""
    f = lambda b: jnp.mean((b - 0.499) ** 2)
    mean = lambda p: jnp.mean(jax.nn.sigmoid(p["logits"]) * (1 - 2 * 0.499))
    make = lambda p, x: (Bernoulli(p["logits"]), f)
    return Problem(
        "binary", {"logits": jnp.full(200, settings.logit)}, make, gradient=jax.grad(mean)
    )


def liu_kool(settings: Settings) -> Problem:
    """E sum_i (b_i - p_i)^2 of three bits with one logit, p = (0.6, 0.51, 0.48).

    Liu et al. 2019, arXiv:1810.04777.
    """
    f = lambda b: jnp.sum((b - jnp.array([0.6, 0.51, 0.48])) ** 2)
    make = lambda p, x: (Bernoulli(jnp.broadcast_to(p["logit"], 3)), f)
    return Problem("binary", {"logit": jnp.array(settings.logit)}, make)


def _gaussian(settings: Settings, f: Callable, mean: Callable) -> Problem:
    """E f(x), x ~ N(1, 1), and its closed form.

    Mohamed et al. 2020, arXiv:1906.10652, figs. 2 and 3.
    """
    make = lambda p, x: (Normal(p["loc"], p["scale"]), lambda z: jnp.sum(f(z)))
    params = {"loc": jnp.ones(1), "scale": jnp.ones(1)}
    return Problem(
        "continuous", params, make, gradient=jax.grad(lambda p: jnp.sum(mean(p["loc"], p["scale"])))
    )


def square(settings: Settings) -> Problem:
    """E (x - k)^2, x ~ N(1, 1)."""
    k = settings.rate
    return _gaussian(settings, lambda x: (x - k) ** 2, lambda m, s: (m - k) ** 2 + s**2)


def exponential(settings: Settings) -> Problem:
    """E exp(-k x^2), x ~ N(1, 1)."""
    k = settings.rate
    mean = lambda m, s: jnp.exp(-k * m**2 / (1 + 2 * k * s**2)) / jnp.sqrt(1 + 2 * k * s**2)
    return _gaussian(settings, lambda x: jnp.exp(-k * x**2), mean)


def cosine(settings: Settings) -> Problem:
    """E cos(k x), x ~ N(1, 1)."""
    k = settings.rate
    return _gaussian(
        settings,
        lambda x: jnp.cos(k * x),
        lambda m, s: jnp.cos(k * m) * jnp.exp(-(k**2) * s**2 / 2),
    )


def linear_gaussian(settings: Settings) -> Problem:
    """A linear Gaussian model, z ~ N(mu, I), x|z ~ N(z, I), q = N(A x + b, 2/3 I).

    Rainforth et al. 2018, arXiv:1802.04537. The parameters are mu, A and b. A and b are 0.01 from
    their optimum, A = I/2 and b = mu/2.
    """
    d, rng = settings.latent, np.random.default_rng(settings.seed)
    x = rng.normal(size=d) + rng.normal(size=(1024, d)) + rng.normal(size=(1024, d))
    mu = x.mean(0)
    optimum = {"mu": mu, "weight": np.eye(d) / 2, "bias": mu / 2}
    params = jax.tree.map(
        lambda a: jnp.asarray(a + 0.01 * rng.normal(size=a.shape), float), optimum
    )
    one = jnp.ones(d)
    prior = lambda p: Normal(p["mu"], one)

    def make(p: Any, x: Any) -> tuple[Normal, Callable]:
        q = Normal(
            jnp.matmul(p["weight"], x, precision="float32") + p["bias"], np.sqrt(2 / 3) * one
        )
        return q, lambda z: Normal(z, one).log_prob(x) + prior(p).log_prob(z)

    units = jnp.asarray(x[rng.choice(1024, (settings.units, settings.batch_size))], float)
    return Problem("continuous", params, make, True, units, prior)


def binary_vae(settings: Settings) -> Problem:
    """A VAE small enough to enumerate: bits z, linear posterior and likelihood of x in {0, 1}^4."""
    d, rng = settings.latent, np.random.default_rng(settings.seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), float)
    params = {
        "encoder": {"w": draw(d, 4), "b": draw(d)},
        "decoder": {"w": draw(4, d), "b": draw(4)},
    }

    def make(p: Any, x: Any) -> tuple[Bernoulli, Callable]:
        affine = lambda part, v: jnp.matmul(part["w"], v, precision="float32") + part["b"]
        prior = Bernoulli(jnp.zeros(d))
        q = Bernoulli(affine(p["encoder"], x))
        return q, lambda z: Bernoulli(affine(p["decoder"], z)).log_prob(x) + prior.log_prob(z)

    units = jnp.asarray(rng.integers(0, 2, (settings.units, 1, 4)), float)
    return Problem("binary", params, make, True, units)


def logistic_regression(settings: Settings) -> Problem:
    """Bayesian logistic regression on scikit-learn's breast cancer.

    q is a diagonal Gaussian over 31 weights. Inputs are standardized and the prior is a standard
    normal, as in Mohamed et al. 2020 (arXiv:1906.10652, sec. 8).
    """
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    x = jnp.asarray(np.concatenate([(x - x.mean(0)) / x.std(0), np.ones((len(x), 1))], 1), float)
    y = jnp.asarray(y, float)
    d = x.shape[1]
    prior = lambda p: Normal(jnp.zeros(d), jnp.ones(d))

    def make(p: Any, _: Any) -> tuple[Normal, Callable]:
        likelihood = lambda z: Bernoulli(jnp.matmul(x, z, precision="float32")).log_prob(y)
        return Normal(
            p["loc"], jnp.exp(p["log_scale"])
        ), lambda z: likelihood(z) + prior(p).log_prob(z)

    return Problem(
        "continuous", {"loc": jnp.zeros(d), "log_scale": jnp.full(d, -1.0)}, make, True, prior=prior
    )


def vae(settings: Settings) -> Problem:
    """The VAE of any preset of jaxvae train, at any step of its training, on its data."""
    arguments = [settings.preset, *shlex.split(settings.arguments)]
    if settings.data_dir is not None:
        arguments += ["--data-dir", settings.data_dir]
    command = command_line.parse(arguments)
    return vae_of(runs.prepare(command.config, command.job), settings)


def vae_of(run: runs.Run, settings: Settings) -> Problem:
    """The VAE of a run; its training is by the estimator that its configuration names."""
    source = run.built.source
    if not isinstance(source, models.VAE):
        raise ValueError(
            f"the problem vae is of VAEs without a condition; this one is of the family "
            f"{run.record.family}"
        )

    def make(params: Any, x: Any) -> tuple[Any, Callable]:
        prior = source.prior(params)

        def joint(z: Any) -> Array:
            return source.decode(params, z).log_prob(x) + prior.log_prob(z)

        return source.encode(params, x), joint

    def train(steps: int) -> Any:
        state = run.init_state()
        if steps:
            state = run.fit(num_steps=steps, state=state)
        return without_control(run.built.parameters(state))

    latents, units = LATENTS.get(run.record.family, "continuous"), units_of(run, settings)
    return Problem(latents, train(0), make, True, units, source.prior, train=train)


def without_control(params: Any) -> Any:
    """The parameters of a model without the control variate of its estimator."""
    return {name: part for name, part in params.items() if name != "control"}


def units_of(run: runs.Run, settings: Settings) -> Any:
    """Batches of random training examples, as the model takes them: [U, B, ...]."""
    rng = np.random.default_rng(settings.seed)
    shape = settings.units, settings.batch_size
    rows = rng.choice(datasets.num_examples(run.train.x), shape)
    keys = jax.random.split(jax.random.key(settings.seed), shape)
    raw = datasets.rows_of(run.train.x, rows)
    return jax.jit(jax.vmap(jax.vmap(run.built.preprocess)))(keys, raw)


PROBLEMS: dict[str, Callable[[Settings], Problem]] = {
    problem.__name__: problem
    for problem in (
        *(toy, titsias_shi, liu_kool, square, exponential, cosine),
        *(linear_gaussian, binary_vae, logistic_regression, vae),
    )
}


def estimators_of(problem: Problem) -> dict[str, expectations.Estimator]:
    """All that serve a problem: the expectations, and the bounds where it is one."""
    table = expectations.ESTIMATORS | (bounds.BOUNDS if problem.joint else {})
    return {name: member for name, member in table.items() if problem.latents in member.latents}


def context(x: Any) -> Array:
    """What a control variate may look at: the example, or nothing."""
    return jnp.zeros(1) if x is None else jnp.ravel(x) * 1.0


def wired(
    problem: Problem, name: str, control: Any = None
) -> Callable[[Any, Any], tuple[Any, Callable, dict]]:
    """(params, x) -> q, f and settings, as an estimator takes them.

    For a bound's problem, f is log p(x, z) - log q(z). log q then carries no gradient in the
    parameters of q, because it has mean zero, unless the estimator differentiates through z alone.
    """
    estimator = estimators_of(problem)[name]

    def make(params: Any, x: Any) -> tuple[Any, Callable, dict[str, Any]]:
        q, f = problem.make(params, x)
        more: dict[str, Any] = {}
        if estimator.init is not None:
            more |= {"control": control, "context": context(x)}
        if estimator.takes_prior:
            if problem.prior is None:
                raise ValueError(f"{name} needs a prior, which this problem has not")
            prior = problem.prior(params)
            more["prior"] = prior
            return q, lambda z: f(z) - prior.log_prob(z) + stop_gradient(prior).log_prob(z), more
        if problem.joint and not estimator.estimates:
            through_z = estimator.latents == expectations.contract.CONTINUOUS
            density = q if through_z else stop_gradient(q)
            return q, lambda z: f(z) - density.log_prob(z), more
        return q, f, more

    return make


def objective(problem: Problem, name: str, num_samples: int, control: Any = None) -> Callable:
    """(key, params, x) -> scalar, whose gradient an estimator estimates."""
    return _of_estimator(problem, name, control, estimators_of(problem)[name], num_samples)


def descent(problem: Problem, name: str, num_samples: int, control: Any) -> Callable:
    """(key, params, x) -> what the estimator's control descends."""
    learn = estimators_of(problem)[name].learn
    return _of_estimator(problem, name, control, learn, num_samples)


def _of_estimator(
    problem: Problem, name: str, control: Any, function: Callable, num_samples: int
) -> Callable:
    make = wired(problem, name, control)

    def scalar(key: Array, params: Any, x: Any) -> Array:
        q, f, more = make(params, x)
        return function(key, q, f, num_samples, **more)

    return scalar
