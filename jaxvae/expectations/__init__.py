"""Gradient estimators of E_q f(z), ``(key, q, f, num_samples) -> scalar``: its gradient estimates
the gradient.

``f`` takes one z of q's event shape to a number, may depend on parameters itself, and is
differentiated in them where z was drawn. What an estimator serves, whether it is unbiased and what
it costs stands in ``ESTIMATORS``.
"""

from jaxvae.expectations.contract import (
    ESTIMATORS,
    Estimator,
    Noise,
    controlled,
    estimator,
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
    lax,
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
    "Estimator",
    "Noise",
    "ar",
    "arm",
    "arms",
    "ars",
    "arsm",
    "carms",
    "concrete",
    "controlled",
    "disarm",
    "disarm_iw",
    "disarm_sb",
    "disarm_tree",
    "double_cv",
    "enumeration",
    "estimator",
    "gumbel_rao",
    "lax",
    "linearized_pathwise",
    "local_expectation",
    "measure_valued",
    "measure_valued_independent",
    "moving_average",
    "muprop",
    "nvil",
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
