"""Gradient estimators of E_q f(z): ``(key, q, f, num_samples) -> scalar``.

The gradient of the scalar estimates the gradient of E_q f(z). ``f`` takes one z of q to a scalar.
It may depend on parameters, and then it is differentiated in them at the draws. Each member of
``ESTIMATORS`` says which latents it serves, whether it is unbiased and what it costs.
"""

from jaxvae.expectations.contract import (
    ESTIMATORS,
    Estimator,
    Noise,
    as_estimator,
    controlled,
    estimator,
    of_scalars,
)
from jaxvae.expectations.control import (
    double_cv,
    rebar,
    rebar_tied,
    relax,
    relax_tied,
    rodeo,
)
from jaxvae.expectations.coupled import (
    ars,
    arsm,
    carms,
    disarm_iw,
    disarm_sb,
    disarm_tree,
)
from jaxvae.expectations.discrete import (
    ar,
    arm,
    arms,
    disarm,
    enumeration,
    local_expectation,
)
from jaxvae.expectations.general import (
    lax_estimator,
    linearized_pathwise,
    measure_valued,
    measure_valued_independent,
    moving_average,
    muprop,
    nvil,
    pathwise,
    rloo,
    score_function,
)
from jaxvae.expectations.learned import Controlled, context_of, controlled_at
from jaxvae.expectations.relaxed import (
    concrete,
    gumbel_rao,
    reinmax,
    straight_through,
    straight_through_gumbel,
)
from jaxvae.expectations.sets import (
    stochastic_sum_and_sample,
    sum_and_sample,
    unordered_set,
    unordered_set_baseline,
)

__all__ = [
    "ESTIMATORS",
    "Controlled",
    "Estimator",
    "Noise",
    "ar",
    "arm",
    "arms",
    "ars",
    "arsm",
    "as_estimator",
    "carms",
    "concrete",
    "context_of",
    "controlled",
    "controlled_at",
    "disarm",
    "disarm_iw",
    "disarm_sb",
    "disarm_tree",
    "double_cv",
    "enumeration",
    "estimator",
    "gumbel_rao",
    "lax_estimator",
    "linearized_pathwise",
    "local_expectation",
    "measure_valued",
    "measure_valued_independent",
    "moving_average",
    "muprop",
    "nvil",
    "of_scalars",
    "pathwise",
    "rebar",
    "rebar_tied",
    "reinmax",
    "relax",
    "relax_tied",
    "rloo",
    "rodeo",
    "score_function",
    "stochastic_sum_and_sample",
    "straight_through",
    "straight_through_gumbel",
    "sum_and_sample",
    "unordered_set",
    "unordered_set_baseline",
]
