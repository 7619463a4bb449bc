"""The estimator passes scikit-learn's own checks, and works in pipelines and grid searches."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from jaxvae.estimator import VAE

SMALL = {"hidden": (8,), "steps": 5, "score_samples_draws": 20, "random_state": 0}


@pytest.mark.slow
@parametrize_with_checks([VAE(**SMALL)])
def test_scikit_learns_checks(estimator, check) -> None:
    check(estimator)


@pytest.mark.slow
def test_a_pipeline_with_a_scaler_and_a_classifier_works_in_a_grid_search() -> None:
    x, y = load_iris(return_X_y=True)
    vae = VAE(**SMALL | {"steps": 300, "hidden": (16,), "learning_rate": 1e-2})
    pipeline = make_pipeline(StandardScaler(), vae, LogisticRegression())
    search = GridSearchCV(pipeline, {"logisticregression__C": [1e-4, 10.0]}, cv=2)
    search.fit(x, y)
    assert search.best_params_ == {"logisticregression__C": 10.0}
    assert search.best_score_ > 0.8


def test_densities_are_of_x_as_it_is_given() -> None:
    """A linear VAE of a Gaussian; cells may be missing, and a copy by pickle is the same."""
    rng = np.random.default_rng(0)
    root = np.array([[2.0, 0.0, 0.0], [1.5, 1.0, 0.0], [-1.0, 0.5, 3.0]])
    x = rng.normal(size=(1000, 3)) @ root.T + [10.0, -5.0, 0.0]
    vae = VAE(
        **SMALL
        | {"hidden": (), "n_components": 2, "steps": 1500, "learning_rate": 1e-2}
        | {"score_samples_draws": 500},
        real_family="normal_shared",
    ).fit(x)
    exact = stats.multivariate_normal(x.mean(0), np.cov(x.T)).logpdf(x).mean()
    assert exact - 0.35 < vae.score(x) < exact + 0.03
    gaps = x[:5].copy()
    gaps[:, 1] = np.nan
    one = stats.multivariate_normal(x.mean(0)[[0, 2]], np.cov(x.T)[np.ix_([0, 2], [0, 2])])
    np.testing.assert_allclose(vae.score_samples(gaps), one.logpdf(gaps[:, [0, 2]]), atol=1.0)
    copy = pickle.loads(pickle.dumps(vae))
    np.testing.assert_array_equal(copy.transform(gaps), vae.transform(gaps))
    drawn = vae.sample(500)
    np.testing.assert_allclose(drawn.mean(0), x.mean(0), atol=0.6)
    again = vae.inverse_transform(vae.transform(x))
    assert ((again - x) ** 2).mean() < 0.7 * x.var(0).mean()
