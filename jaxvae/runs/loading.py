"""Opens a trained model from its run folder, without its data set."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae import checkpoints, datasets, evaluation, models, training
from jaxvae.contracts import Array, Params
from jaxvae.distributions import mean_of
from jaxvae.families import Built, Data
from jaxvae.runs import folders, weights


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Trained:
    """A trained model, whose methods take batches of NumPy or JAX arrays.

    Arrays are as the data set holds them, such as images of uint8, and the methods preprocess them.
    A model of sentences takes a list of strings too, and ``sentences`` reads its rows of words. A
    model of p(x|y) also takes ``condition``, such as labels [N] or names of classes. A model that
    classifies takes them where it draws, if there are any. ``model`` holds the pure functions of
    one example, which take ``params``. ``source`` is the family's record, such as a
    ``models.VAE``.
    """

    built: Built
    data: Data
    params: Params
    step: int
    workdir: Path | None = None
    result: dict[str, Any] | None = None  # what ``result.json`` holds, if training has ended

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        of_data = f"{self.data.name} of shape {self.data.shape}"
        return f"Trained({self.workdir}: {of_data}, step {self.step}, {count:,} parameters)"

    @property
    def model(self) -> models.Model:
        """What can be asked of the model: pure functions of one example."""
        return self.built.model

    @property
    def source(self) -> Any:
        """The family's record, such as a ``models.VAE``."""
        return self.built.source

    def encode(self, x: Any, condition: Any = None) -> Any:
        """The mean of q(z|x) for each example: [N, *event], or a pytree of them."""
        return self._mapped("encode", _mean_code)(self.params, *self._keyed(x, condition))

    def posterior(self, x: Any, condition: Any = None) -> Any:
        """q(z|x) of each example, stacked: a distribution whose parameters are [N, ...]."""
        return self._mapped("encode", _posterior)(self.params, *self._keyed(x, condition))

    def decode(self, z: Any, condition: Any = None) -> Array:
        """The mean of p(x|z) for each z [N, *event]: [N, *shape of x]."""
        return self._mapped("decode", _mean_image)(self.params, z, self._condition(condition, z))

    def reconstruct(self, x: Any, condition: Any = None) -> Array:
        """The mean of p(x|z) at the mean of q(z|x), for each example."""
        return self._mapped("encode", _reconstruction)(self.params, *self._keyed(x, condition))

    def sample_latents(self, key: Array, num: int, condition: Any = None) -> Any:
        """``num`` draws of z from the prior."""
        keys = jax.random.split(key, num)
        return self._mapped("draw", _latent)(self.params, keys, self._condition(condition, keys))

    def sample(self, key: Array, num: int, condition: Any = None) -> Array:
        """``num`` draws of x: z from the prior, then x from p(x|z).

        ``decode`` gives the means of p(x|z) instead.
        """
        key_z, key_x = jax.random.split(key)
        z = self.sample_latents(key_z, num, condition)
        keys = jax.random.split(key_x, num)
        return self._mapped("decode", _image)(
            self.params, keys, z, self._condition(condition, keys)
        )

    def classify(self, x: Any) -> Array:
        """q(y|x) of the classes for each example, [N, C]."""
        raw = self.checked(x)
        if self.built.pairs:
            raw = models.Conditioned(raw, jnp.full(len(raw), -1, jnp.int32))
        keys = jax.random.split(jax.random.key(0), len(x))
        return jnp.exp(self._mapped("classify", _log_classes)(self.params, keys, raw))

    def elbo(self, key: Array, x: Any, condition: Any = None) -> Array:
        """The ELBO of each example, [N] in nats, from one draw of z."""
        return self._mapped("terms", _elbo)(self.params, *self._keyed(x, condition, key))

    def log_likelihood(
        self, key: Array, x: Any, num_samples: int = 1000, condition: Any = None
    ) -> np.ndarray:
        """An estimate of log p(x) for each example, [N] in nats, from importance samples."""
        self._answer("log_weights")
        split = datasets.Split(self._raw(x, condition), preprocess=self.built.preprocess)
        return evaluation.log_likelihoods(
            self.model, self.params, key, split, num_samples=num_samples
        )

    def sentences(self, x: Any) -> np.ndarray:
        """Rows of words [..., T], such as ``sample`` gives, as strings [...]."""
        if self.built.rows is None:
            raise ValueError("sentences are of a model of text, and this one is not")
        return self.built.pictures(np.asarray(x), None)

    # Methods of batches are made of the pure functions of one example.

    def _answer(self, name: str) -> Any:
        answer = getattr(self.model, name)
        if answer is None:
            raise ValueError(f"this model has no {name}: its family gives no such answer")
        return answer

    def _mapped(self, answer: str, function: Callable) -> Callable:
        """``function`` of a batch, compiled once for each model."""
        self._answer(answer)
        return _compiled(function, self.built.model, self.built.preprocess)

    def _raw(self, x: Any, condition: Any) -> Any:
        """Raw examples: x, with the condition if the model takes pairs."""
        raw = self.checked(x)
        if not self.built.pairs:
            return raw
        if condition is None:
            raise ValueError("this model is conditional: give condition=, one for each example")
        return models.Conditioned(raw, self._numbers(condition))

    def _numbers(self, condition: Any) -> Array:
        """Conditions as arrays; names of classes become labels. Raises ValueError for no class."""
        given, classes = np.asarray(condition), list(self.data.classes)
        count = self.data.num_classes
        if given.dtype.kind in "UO":
            strange = [name for name in given.tolist() if name not in classes]
            given = np.array([-1 if strange else classes.index(name) for name in given.tolist()])
        else:
            labels = count and given.ndim == 1 and given.dtype.kind in "iu"
            strange = [y for y in given.tolist() if not 0 <= y < count] if labels else []
        if strange:
            names = f", or {', '.join(classes)}" if classes else ""
            raise ValueError(
                f"condition holds {strange[0]!r}, which is no class: the classes are 0 to "
                f"{count - 1}{names}"
            )
        return jnp.asarray(given)

    def checked(self, x: Any) -> Any:
        """x as the data set holds it, with the shape and the type of the training examples."""
        if self.built.rows is not None and not np.issubdtype(np.asarray(x).dtype, np.number):
            x = self.built.rows(np.atleast_1d(x))
        array = jnp.asarray(x)
        if array.shape[1:] != self.data.shape:
            raise ValueError(
                f"x has shape {array.shape}; this model takes batches [N, "
                f"{', '.join(map(str, self.data.shape))}] of {self.data.dtype}"
            )
        wanted, given = np.dtype(self.data.dtype), np.dtype(array.dtype)
        if np.issubdtype(wanted, np.integer) != np.issubdtype(given, np.integer):
            raise ValueError(
                f"x holds {given}; this model was trained on {wanted} and preprocesses x itself: "
                "give the values as its data set holds them"
            )
        return array

    def _keyed(self, x: Any, condition: Any, key: Array | None = None) -> tuple[Array, Any]:
        raw = self._raw(x, condition)
        key = jax.random.key(0) if key is None else key
        return jax.random.split(key, len(jax.tree.leaves(raw)[0])), raw

    def _condition(self, condition: Any, like: Any) -> Any:
        """The condition as the model takes it, one for each row of ``like``."""
        encode = self.built.condition
        if encode is None and (condition is None or self.model.classify is None):
            return None
        if condition is None:
            raise ValueError("this model is conditional: give condition=, one for each row")
        count, given = len(jax.tree.leaves(like)[0]), len(condition)
        if count != given:
            raise ValueError(f"{given} conditions were given for {count} rows: give one for each")
        given_rows = self._numbers(condition)
        return given_rows if encode is None else jax.vmap(encode)(given_rows)


@functools.lru_cache(maxsize=64)
def _compiled(function: Callable, model: models.Model, preprocess: Callable) -> Callable:
    """``jax.jit`` of a function of one example, mapped over all arguments but the parameters."""

    def batch(params: Params, *arguments: Any) -> Any:
        one = lambda *each: function(model, preprocess, params, *each)
        return jax.vmap(one)(*arguments)

    return jax.jit(batch)


# Functions of one example: (model, preprocess, params, ...)


def _posterior(model: Any, preprocess: Callable, params: Params, key: Array, raw: Any) -> Any:
    return model.encode(params, preprocess(key, raw))


def _mean_code(model: Any, preprocess: Callable, params: Params, key: Array, raw: Any) -> Any:
    return mean_of(_posterior(model, preprocess, params, key, raw))


def _log_classes(model: Any, preprocess: Callable, params: Params, key: Array, raw: Any) -> Array:
    return model.classify(params, preprocess(key, raw))


def _mean_image(model: Any, preprocess: Callable, params: Params, z: Any, condition: Any) -> Array:
    return model.decode(params, z, condition).mean


def _reconstruction(
    model: Any, preprocess: Callable, params: Params, key: Array, raw: Any
) -> Array:
    example = preprocess(key, raw)
    z = mean_of(model.encode(params, example))
    return model.decode(params, z, model.parts(example)[1]).mean


def _latent(model: Any, preprocess: Callable, params: Params, key: Array, condition: Any) -> Any:
    return model.draw(params, key, condition)


def _image(
    model: Any, preprocess: Callable, params: Params, key: Array, z: Any, condition: Any
) -> Array:
    return model.decode(params, z, condition).sample(key)


def _elbo(model: Any, preprocess: Callable, params: Params, key: Array, raw: Any) -> Array:
    key_x, key_z = jax.random.split(key)
    terms = model.terms(params, key_z, preprocess(key_x, raw), 1)
    return terms["reconstruction"] - terms["kl"]


def of_run(
    built: Built,
    data: Data,
    params: Params,
    step: int,
    workdir: Path | None,
    result: dict[str, Any] | None,
) -> Trained:
    """The trained model of a run that has just ended.

    Args:
      built: what the family built.
      data: what is known of the data.
      params: the parameters after the last step.
      step: the last step.
      workdir: the run folder, or None.
      result: the content of ``result.json``, or None if training has not ended.
    """
    return Trained(
        built,
        data._replace(examples=None, labelled=None, class_attributes=None),
        params,
        step,
        workdir,
        result,
    )


def load(workdir: str | Path, checkpoint: str | int = "latest") -> Trained:
    """Opens the trained model of a run folder, or of an exported folder.

    The data set is not needed. ``checkpoint`` is ``"latest"``, ``"best"`` or a step. Raises
    ValueError if the folder is no run, or has no such checkpoint.

    >>> model = jaxvae.load("runs/digits-digits-0", "best")  # doctest: +SKIP
    >>> images = model.sample(jax.random.key(0), 16)  # doctest: +SKIP
    >>> codes = model.encode(x)  # doctest: +SKIP
    """
    folder = Path(workdir)
    record = folders.read(folder).of_raw()
    built = record.build()
    step, params = restore(folder, built, record.data, checkpoint)
    result = folder / "result.json"
    found = folders.read_json(result) if result.exists() else None
    return Trained(built, record.data, params, step, folder, found)


def restore(
    workdir: Path, built: Built, data: Data, checkpoint: str | int = "latest"
) -> tuple[int, Params]:
    """The step and the parameters of a run's checkpoint.

    ``latest`` is the newest checkpoint that is not damaged. Damaged ones are named on stderr. An
    exported folder has the parameters of one step.
    """
    state = built.fresh_state(data)
    if weights.are_in(workdir):
        return _exported(workdir, jax.eval_shape(built.parameters, state), str(checkpoint))
    with checkpoints.Checkpoints(workdir / "checkpoints") as saved:
        for step in _steps(saved, str(checkpoint)):
            try:
                return step, built.parameters(_parameters(saved, step, state))
            except checkpoints.DamagedError as error:
                if checkpoint != "latest":
                    raise
                folders.warn(str(error))
        raise ValueError(
            f"{workdir} has no checkpoint {str(checkpoint)!r}; it has {saved.steps or 'none'}"
        )


def _exported(folder: Path, like: Params, checkpoint: str) -> tuple[int, Params]:
    """The step and the parameters of an exported folder."""
    config = folders.read_json(folder / "config.json")
    step = config["step"]
    if checkpoint not in ("latest", "best", str(step)):
        raise ValueError(f"{folder} has no checkpoint {checkpoint!r}; it was exported at {step}")
    return step, weights.read(folder, config, like)


def _steps(saved: checkpoints.Checkpoints, which: str) -> list[int]:
    """The steps to try, in this order."""
    if which == "latest":
        return saved.steps[::-1]
    step = saved.best if which == "best" else int(which) if which.isdigit() else None
    return [step] if step in saved.steps else []


def _parameters(saved: checkpoints.Checkpoints, step: int, state: Any) -> Any:
    """A state with the parameters of a checkpoint; the optimizer's state is not read."""
    if not isinstance(state, training.State):
        return saved.restore(step, state)[0]
    part: dict[str, Any] = {"params": state.params}
    if state.average is not None:
        part["average"] = state.average
    return state._replace(**saved.restore_part(step, part))
