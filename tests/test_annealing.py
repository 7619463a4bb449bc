"""Annealed importance sampling and bidirectional Monte Carlo, beside likelihoods that are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Linear
from scipy.special import logsumexp
from test_inference import vae_of

from jaxvae import datasets, models
from jaxvae.distributions import Normal
from jaxvae.uses import annealing, estimates, paths

KEY = jax.random.key(0)
EXAMPLES, CHAINS = 24, 8


@pytest.fixture(scope="module")
def linear() -> Linear:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3)) @ rng.normal(size=(3, 6)) + 0.4 * rng.normal(size=(400, 6))
    return Linear(x.astype(np.float32), 3)


class Both(dict):
    """Forward and reverse bounds of simulated rows, beside the exact log p(x), by temperatures."""

    def __init__(self, linear: Linear):
        super().__init__()
        self.linear = linear
        self.vae, self.params = linear.vae("normal", linear.w)

    def __missing__(self, steps: int) -> tuple[Any, np.ndarray]:
        one = lambda key: annealing.both_sides(
            self.vae, self.params, key, steps, CHAINS, "prior", leapfrogs=5
        )
        sides, x = jax.jit(jax.vmap(one))(jax.random.split(KEY, EXAMPLES))
        exact = self.linear.log_likelihood(x, self.linear.w, self.linear.mean, self.linear.s2)
        self[steps] = jax.tree.map(np.asarray, sides), exact
        return self[steps]


@pytest.fixture(scope="module")
def both(linear: Linear) -> Both:
    return Both(linear)


def z_of(values: np.ndarray) -> float:
    """A mean in units of its standard error."""
    return float(values.mean() / (values.std(ddof=1) / np.sqrt(len(values))))


@pytest.mark.parametrize("steps", [60, pytest.param(10, marks=pytest.mark.slow)])
def test_forward_is_below_and_reverse_above(steps: int, both: Both) -> None:
    sides, exact = both[steps]
    assert z_of(sides.lower.log_likelihood - exact) < 2
    assert z_of(sides.upper.log_likelihood - exact) > -2
    assert (sides.upper.log_likelihood - sides.lower.log_likelihood).mean() > 0


@pytest.mark.slow
def test_the_gap_falls_with_the_temperatures(both: Both) -> None:
    gaps = [
        (both[steps][0].upper.log_likelihood - both[steps][0].lower.log_likelihood).mean()
        for steps in (10, 60)
    ]
    assert gaps[1] < 0.5 * gaps[0]
    single = [both[steps][0].lower.log_weights - both[steps][1][:, None] for steps in (10, 60)]
    assert single[0].mean() < single[1].mean() < 0  # one chain is further below


def test_weights_are_unbiased(both: Both) -> None:
    """E w / p(x) = 1 forward, and E p(x) / w' = 1 backward."""
    sides, exact = both[60]
    forward = np.exp(sides.lower.log_weights - exact[:, None]).mean(1)
    backward = np.exp(exact[:, None] - sides.upper.log_weights).mean(1)
    assert abs(z_of(forward - 1)) < 3 and abs(z_of(backward - 1)) < 3
    assert forward.std() < 2


def test_an_exact_base_gives_weights_without_noise(linear: Linear) -> None:
    """From the exact posterior every weight is p(x), whatever the temperatures and moves are."""
    vae, params = linear.vae("normal", linear.w)
    x = jnp.asarray(linear.mean + 1, jnp.float32)
    found = jax.jit(lambda: annealing.annealed(vae, params, KEY, x, 4, 3, leapfrogs=2))()
    exact = linear.log_likelihood(np.asarray(x), linear.w, linear.mean, linear.s2)
    np.testing.assert_allclose(found.log_weights, exact, atol=2e-4)
    assert float(found.effective_samples) == pytest.approx(3, rel=1e-4)
    assert float(found.chain_error) < 1e-3


def test_acceptance_is_tuned_and_step_sizes_are_frozen(linear: Linear) -> None:
    """Each temperature has a step size of its own, which does not depend on the weighted chains."""
    vae, params = linear.vae("normal", linear.w)
    x = jnp.asarray(linear.mean, jnp.float32)

    def one(key: jax.Array) -> Any:
        path, draws = annealing.path_of(vae, params, KEY, x, 40, "prior", leapfrogs=5)
        first, second = jax.random.split(key)
        return path.step_sizes, paths.walked(path, first, draws(second, 200))

    sizes, (log_w, acceptance) = jax.jit(jax.vmap(one))(jax.random.split(KEY, 2))
    np.testing.assert_array_equal(sizes[0], sizes[1])  # of other weighted chains
    assert not np.array_equal(log_w[0], log_w[1])
    assert float(sizes[0, 1]) > 2 * float(sizes[0, -1])  # the target is narrower than the prior
    np.testing.assert_allclose(acceptance, paths.ACCEPTANCE, atol=0.1)


def test_a_transition_leaves_its_density_invariant() -> None:
    """From exact draws of N(1, 0.5^2) at beta = 1 the moments stay, at a coarse step size."""
    goal, base = Normal(jnp.ones(2), jnp.full(2, 0.5)), Normal(jnp.zeros(2), jnp.ones(2))
    betas = jnp.ones(12)
    path = paths.Path(base.log_prob, goal.log_prob, betas, jnp.full(12, 0.7), 3)
    z = goal.sample(KEY, (4000,))

    def walk(z: jax.Array) -> jax.Array:
        places = jax.vmap(lambda z: paths.placed(path, z))(z)
        step = lambda places, key: (paths.moved(path, places, key, 1.0, 0.7)[0], None)
        return jax.lax.scan(step, places, jax.random.split(KEY, 12))[0].z

    end = np.asarray(jax.jit(walk)(z))
    assert np.abs(np.corrcoef(end[:, 0], z[:, 0])[0, 1]) < 0.1  # the chains have moved
    np.testing.assert_allclose(end.mean(0), 1, atol=4 * 0.5 / np.sqrt(4000))
    np.testing.assert_allclose(end.std(0), 0.5, rtol=0.05)


def test_the_schedule_is_the_sigmoid_of_the_paper() -> None:
    s = lambda t: 1 / (1 + np.exp(-t))
    expected = [(s(t) - s(-4)) / (s(4) - s(-4)) for t in np.linspace(-4, 4, 6)]
    betas = np.asarray(paths.sigmoid_schedule(5))
    np.testing.assert_allclose(betas, expected, atol=1e-6)
    assert betas[0] == 0 and betas[-1] == 1
    with pytest.raises(ValueError, match="at least 1 temperature"):
        paths.sigmoid_schedule(0)


@pytest.mark.slow
@pytest.mark.parametrize("optimized", [pytest.param(True, marks=pytest.mark.optimized), False])
def test_increments_of_many_temperatures_are_not_lost(optimized: bool) -> None:
    """A target that is 512,345.6 above its base, in 5,000 steps of float32."""
    base = Normal(jnp.zeros(1), jnp.ones(1))
    goal = lambda z: base.log_prob(z) + 512_345.6
    betas = paths.sigmoid_schedule(5000)
    path = paths.Path(base.log_prob, goal, betas, jnp.full_like(betas, 0.5), 1)
    log_w, _ = jax.jit(lambda: paths.walked(path, KEY, jnp.zeros((2, 1))))()
    np.testing.assert_allclose(log_w, 512_345.6, atol=0.1)


def test_the_jackknife_leaves_one_out() -> None:
    log_w = np.array([0.3, -2.0, 1.1, 0.4, -0.7])
    without = np.array([logsumexp(np.delete(log_w, k)) - np.log(4) for k in range(5)])
    expected = np.sqrt(4 / 5 * ((without - without.mean()) ** 2).sum())
    assert float(annealing.jackknife(jnp.asarray(log_w))) == pytest.approx(expected, rel=1e-4)
    assert np.isinf(annealing.jackknife(jnp.zeros(1)))


def test_intervals_cover_the_mean() -> None:
    tables = np.random.default_rng(0).normal(2, 3, (2000, 60))
    hits = [abs(e.value - 2) < e.interval for e in map(estimates.mean_of_column, tables)]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.02)
    assert np.isnan(estimates.mean_of_column([1.0]).interval)


@pytest.mark.slow
def test_both_estimates_see_the_same_examples(linear: Linear) -> None:
    """Preprocessing draws anew each time, and the difference is paired all the same."""
    vae, params = linear.vae("normal", linear.w)
    noisy = lambda key, x: x + 3 * jax.random.normal(key, x.shape)
    rows = datasets.Examples(np.zeros((5, 6), np.float32), noisy)
    found = annealing.compared(
        vae, params, KEY, rows, num_steps=2, chains=2, num_samples=3, batch_size=2
    )
    assert found.annealed.standard_error > 1  # the examples are far apart
    assert abs(found.difference.value) < 2e-3  # the posterior is exact, so both are log p(x)
    assert found.difference.standard_error < 2e-3
    assert (found.num_examples, found.chains, found.num_samples) == (5, 2, 3)


@pytest.mark.slow
def test_batches_do_not_change_a_number(linear: Linear) -> None:
    vae, params = linear.vae("normal", linear.w)
    one = lambda size: annealing.sandwich(
        vae, params, KEY, num_examples=5, num_steps=2, chains=2, num_samples=3, batch_size=size
    )
    assert one(2).gap.value == pytest.approx(one(5).gap.value, abs=1e-5)


# Refusals


@pytest.mark.parametrize(
    "name, words",
    [("bernoulli", "are bits"), ("power_spherical", "sphere"), ("beta_sticks", "shares between")],
)
def test_latents_that_are_not_any_real_numbers_are_refused(name: str, words: str) -> None:
    vae, params = vae_of(name)
    with pytest.raises(ValueError, match=words):
        annealing.annealed(vae, params, KEY, jnp.zeros(4), 2, 2)


@pytest.mark.slow
def test_a_flow_without_an_inverse_starts_from_the_prior() -> None:
    vae, params = vae_of("planar")
    with pytest.raises(ValueError, match="start from the prior"):
        annealing.annealed(vae, params, KEY, jnp.zeros(4), 2, 2)
    found = annealing.annealed(vae, params, KEY, jnp.zeros(4), 2, 2, "prior", 2)
    assert np.isfinite(found.log_likelihood)


def test_a_model_that_gives_no_joint_is_refused() -> None:
    with pytest.raises(ValueError, match="has no encode and no log_joint"):
        annealing.annealed(models.Model(lambda key, x: {}), {}, KEY, jnp.zeros(4))


# The command


@pytest.mark.slow
def test_evaluate_prints_the_gap_and_both_directions(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from jaxvae.command_line import main

    short = "--hidden 8 --latent 2 --steps 4 --test-examples 5 --test-samples 5"
    place = ["--data-dir", str(data_dir), "--workdir", str(tmp_path)]
    main(["train", "digits", *place, *short.split()])
    asked = "--num-samples 20 --num-examples 6 --gap --ais 4 --nuts 8 --chains 3"
    asked += " --refinement-steps 5"
    main(["evaluate", str(tmp_path), "--inference-examples", "4", *asked.split()])
    out = capsys.readouterr().out
    for words in (
        "amortization",
        "log-likelihood by AIS",
        "paired",
        "gap on simulated data",
        "R-hat",
    ):
        assert words in out
    assert "upper" not in out
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["gap"]["num_examples"] == written["ais"]["num_examples"] == 4
    assert np.isfinite(written["ais_simulated"]["gap"]["value"])


@pytest.mark.slow
@pytest.mark.optimized
def test_tempered_smc_of_blackjax_agrees(linear: Linear) -> None:
    """Adaptive tempered SMC from the prior, beside AIS and the exact log p(x)."""
    import blackjax
    from blackjax.smc import resampling

    vae, params = linear.vae("normal", linear.w)
    rng = np.random.default_rng(1)
    x = linear.mean + rng.normal(size=(8, 3)) @ linear.w.T
    x = (x + np.sqrt(linear.s2) * rng.normal(size=x.shape)).astype(np.float32)
    exact = linear.log_likelihood(x, linear.w, linear.mean, linear.s2)

    def smc(key: jax.Array, x: jax.Array) -> jax.Array:
        log_prior = vae.prior(params).log_prob
        log_likelihood = lambda z: vae.decode(params, z).log_prob(x)
        sampler = blackjax.adaptive_tempered_smc(
            log_prior,
            log_likelihood,
            blackjax.hmc.build_kernel(),
            blackjax.hmc.init,
            {
                "step_size": jnp.full(1, 0.2),
                "inverse_mass_matrix": jnp.ones((1, 3)),
                "num_integration_steps": jnp.full(1, 5),
            },
            resampling.systematic,
            0.7,
            num_mcmc_steps=3,
        )
        key_start, key_steps = jax.random.split(key)
        state = sampler.init(vae.prior(params).sample(key_start, (200,)))

        def step(carry: tuple) -> tuple:
            state, key, total = carry
            key, key_step = jax.random.split(key)
            state, info = sampler.step(key_step, state)
            return state, key, total + info.log_likelihood_increment

        unfinished = lambda carry: carry[0].tempering_param < 1
        return jax.lax.while_loop(unfinished, step, (state, key_steps, jnp.float32(0)))[2]

    keys = jax.random.split(KEY, 8)
    of_smc = np.asarray(jax.jit(jax.vmap(smc))(keys, x))
    ais = lambda key, x: annealing.annealed(vae, params, key, x, 200, 16, "prior").log_likelihood
    of_ais = np.asarray(jax.jit(jax.vmap(ais))(keys, x))
    for values in (of_smc, of_ais, of_smc - of_ais + exact):
        assert abs((values - exact).mean()) < 0.2
        assert np.abs(values - exact).max() < 1
