"""A VAE as scikit-learn knows estimators: in pipelines, grid searches and cross-validation.

>>> from jaxvae.estimator import VAE
>>> import numpy as np
>>> x = np.random.default_rng(0).normal(size=(40, 3))
>>> VAE(n_components=1, hidden=(4,), steps=5).fit_transform(x).shape
(40, 1)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import jax
import numpy as np

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_array, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "the estimator needs scikit-learn 1.6 or later: pip install 'jaxvae[tabular]'"
    ) from error

from jaxvae import families, training
from jaxvae.datasets import Examples
from jaxvae.datasets.tables import REAL, Column
from jaxvae.distributions import mean_of
from jaxvae.evaluation import log_likelihood
from jaxvae.families import tabular

ROWS = 256  # rows that a compiled function takes; fewer are filled up
CHUNK = 500  # importance samples that are decoded at once


class VAE(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """A variational autoencoder of real columns, of whose cells some may be missing (nan).

    Codes are means of q(z|x). Columns are standardized inside, by their observed cells, and
    log-densities are of X as it is given. A row's numbers do not depend on the other rows, because
    all rows share their draws, so the error of ``score`` falls with ``score_samples_draws`` alone.

    Args:
      n_components: dimensions of z.
      hidden: widths of the hidden layers of encoder and decoder.
      posterior: family of q(z|x), a member of ``posteriors.CONTINUOUS``.
      real_family: density of a cell, normal, normal_shared or student_t.
      num_samples: importance samples of the bound that is trained.
      steps: training steps.
      batch_size: rows in a batch.
      learning_rate: peak learning rate of Adam.
      score_samples_draws: importance samples of log p(x).
      random_state: seed, or a generator, of parameters, batches and draws.
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        hidden: Sequence[int] = (64, 64),
        posterior: str = "normal",
        real_family: str = "normal",
        num_samples: int = 5,
        steps: int = 2000,
        batch_size: int = 64,
        learning_rate: float = 1e-3,
        score_samples_draws: int = 200,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.hidden = hidden
        self.posterior = posterior
        self.real_family = real_family
        self.num_samples = num_samples
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.score_samples_draws = score_samples_draws
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Trains the model on rows X [N, D]; nan is a missing cell, and y is not used."""
        X = self._checked(X, reset=True, ensure_min_samples=2)
        seen = ~np.isnan(X)
        count = np.maximum(seen.sum(0), 1)
        self.mean_ = np.where(seen, X, 0).sum(0) / count
        spread = np.sqrt((np.where(seen, X - self.mean_, 0) ** 2).sum(0) / count)
        self.scale_ = np.where(spread > 0, spread, 1.0)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        model = self._model()
        state = training.fit(
            model.algorithm,
            Examples(self._standardized(X), model.preprocess),
            num_steps=self.steps,
            batch_size=min(self.batch_size, len(X)),
            seed=seed,
        )
        self.params_ = jax.tree.map(np.asarray, training.trained(state))
        self.seed_ = seed
        return self

    def transform(self, X: Any) -> np.ndarray:
        """The mean of q(z|x) of each row, [N, n_components]."""
        X, model = self._fitted(X)
        return self._over_rows(model.encode, self.params_, self._standardized(X)).astype(X.dtype)

    def inverse_transform(self, Z: Any) -> np.ndarray:
        """The mean of p(x|z) of each code, [N, D]."""
        check_is_fitted(self)
        Z = check_array(Z, dtype=[np.float64, np.float32])
        x = self._over_rows(self._model().decode, self.params_, Z.astype(np.float32))
        return (x * self.scale_ + self.mean_).astype(Z.dtype)

    def score_samples(self, X: Any) -> np.ndarray:
        """An estimate of log p(x_o) of the observed cells of each row, [N] in nats."""
        X, model = self._fitted(X)
        one = model.log_likelihood(self.score_samples_draws)
        key = jax.random.key(self.seed_)
        values = self._over_rows(one, (self.params_, key), self._standardized(X))
        return values.astype(np.float64) - np.where(np.isnan(X), 0, np.log(self.scale_)).sum(1)

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of ``score_samples``."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1) -> np.ndarray:
        """Draws of x, [n_samples, D], which are other ones in each call of a generator's state."""
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"n_samples must be at least 1; it was {n_samples}")
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        keys = jax.random.split(jax.random.key(seed), n_samples)
        x = np.asarray(self._model().sample(self.params_, keys), np.float64)
        return x * self.scale_ + self.mean_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.n_components

    def _checked(self, X: Any, **how: Any) -> np.ndarray:
        kinds = [np.float64, np.float32]
        return validate_data(self, X, dtype=kinds, ensure_all_finite="allow-nan", **how)

    def _fitted(self, X: Any) -> tuple[np.ndarray, _Functions]:
        check_is_fitted(self)
        return self._checked(X, reset=False), self._model()

    def _standardized(self, X: np.ndarray) -> np.ndarray:
        return ((X - self.mean_) / self.scale_).astype(np.float32)

    def _model(self) -> _Functions:
        widths = tuple(map(int, self.hidden))
        config = families.preset(
            "tabular",
            latent=self.n_components,
            hidden=widths,
            decoder_hidden=widths[::-1],
            posterior=self.posterior,
            real_family=self.real_family,
            num_samples=self.num_samples,
            learning_rate=self.learning_rate,
            steps=self.steps,
            held_out_cells=0.0,
            early_stopping=0,
        )
        return _functions(config, self.n_features_in_)

    def _over_rows(self, function: Callable, given: Any, rows: np.ndarray) -> np.ndarray:
        """A compiled function of what is given and of ``ROWS`` rows, of all rows."""
        parts = []
        for start in range(0, len(rows), ROWS):
            part = rows[start : start + ROWS]
            whole = np.resize(part, (ROWS, *part.shape[1:]))
            parts.append(np.asarray(function(given, whole))[: len(part)])
        return np.concatenate(parts)


class _Functions(NamedTuple):
    """The model of D standardized columns, and compiled functions of ``ROWS`` rows."""

    algorithm: Any
    preprocess: Any
    encode: Callable  # (params, x) -> codes
    decode: Callable  # (params, z) -> means
    log_likelihood: Callable  # draws -> a function ((params, key), x) -> log p(x_o)
    sample: Callable  # (params, keys) -> x


@functools.lru_cache(maxsize=64)
def _functions(config: tabular.Config, features: int) -> _Functions:
    """Made once for all estimators of the same settings, so that little is compiled."""
    columns = tuple(Column(f"x{i}", REAL).json() for i in range(features))
    data = families.Data("X", (features,), "float32", None, "gaps", 0, columns=columns)
    built = tabular.build(config, data)
    model: Any = built.model

    def by_row(one: Callable) -> Callable:
        """One row after the other, so that a row's numbers do not depend on its place."""
        return jax.jit(lambda given, rows: jax.lax.map(lambda row: one(given, row), rows))

    def drawn(params: Any, key: Any) -> Any:
        key_z, key_x = jax.random.split(key)
        return model.decode(params, model.draw(params, key_z)).sample(key_x)

    @functools.lru_cache(maxsize=8)
    def likelihood(draws: int) -> Callable:
        chunk = min(CHUNK, draws)
        return by_row(
            lambda given, x: log_likelihood(model, given[0], given[1], x, draws, chunk)[0]
        )

    return _Functions(
        built.algorithm,
        built.preprocess,
        by_row(lambda params, x: mean_of(model.encode(params, x))),
        by_row(lambda params, z: model.decode(params, z).mean),
        likelihood,
        jax.jit(jax.vmap(drawn, (None, 0))),
    )
