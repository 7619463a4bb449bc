"""Encoder, decoder and sampler of a trained model as programs that run without jaxvae.

A program is an artefact of ``jax.export``: StableHLO for several platforms at once, and a batch of
any size. JAX runs it, with flatbuffers installed::

    decode = jax.export.deserialize(bytearray(open("decode.stablehlo", "rb").read()))
    images = decode.call(z)

A later JAX reads them for a limited time (https://docs.jax.dev/en/latest/export/export.html), so
config.json has the version and the date beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import export

from jaxvae import records
from jaxvae.contracts import Array, Params
from jaxvae.distributions import mean_of
from jaxvae.models import Conditioned
from jaxvae.runs.loading import Trained

Platform = Literal["cpu", "cuda", "rocm", "tpu"]
PLATFORMS: tuple[Platform, ...] = ("cpu", "cuda", "tpu")
INSIDE = 2**24  # bytes of parameters up to which programs hold them, if nothing else is said


class Artefact(NamedTuple):
    """A file that stands beside the weights of a model, and what config.json says of it."""

    file: str
    content: bytes
    about: dict[str, Any]


class Function(NamedTuple):
    """A function of one example that can become a program."""

    call: Callable[..., Any]  # (params, key, *inputs) -> a tree of arrays
    inputs: dict[str, jax.ShapeDtypeStruct]  # of one example, by name


def plain(tree: Any) -> Any:
    """A tree as programs take and give it: an array, or a dictionary of arrays by their paths.

    >>> plain((1, {"a": 2}))
    {'0': 1, '1/a': 2}
    """
    named = records.named(tree)
    return named[""] if list(named) == [""] else named


def kind_of(array: Any) -> str:
    """Type and shape of an array in a few letters, such as ``float32[b,3]``."""
    return f"{array.dtype}[{','.join(map(str, array.shape))}]"


def _shaped(named: Any, like: Any) -> Any:
    """The tree, structured like ``like``, that ``plain`` has made ``named`` of."""
    names = records.named(like)
    leaves = [named] if list(names) == [""] else [named[name] for name in names]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def functions(model: Trained) -> dict[str, Function]:
    """The functions of a trained model that can become programs, by name.

    * ``encode``: x as the data set holds it -> the mean of q(z|x), as ``Trained.encode`` gives it.
    * ``decode``: z -> the mean of p(x|z), as ``Trained.decode`` gives it.
    * ``sample``: a seed -> a draw of z from the prior, the mean of p(x|z), and a draw of x from it.
      A seed gives the same in every batch.
    * ``classify``: x -> q(y|x) of the classes, as ``Trained.classify`` gives it.

    A conditional model takes the condition as the last input, such as a label. A model has those
    whose answers it has.
    """
    answers, x, condition = model.model, {"x": model.data.example()}, _condition(model)
    given = condition if model.built.condition is not None else {}
    made: dict[str, Function] = {}
    if answers.encode is not None:
        made["encode"] = Function(_encode(model), x | condition)
    if answers.decode is not None and (code := code_of(model)) is not None:
        made["decode"] = Function(_decode(model, code), {"z": plain(code)} | given)
    if answers.draw is not None and answers.decode is not None:
        seed = {"seed": jax.ShapeDtypeStruct((), jnp.uint32)}
        made["sample"] = Function(_sample(model), seed | given)
    if answers.classify is not None:
        made["classify"] = Function(_classify(model), x)
    return made


def _condition(model: Trained) -> dict[str, Any]:
    """The shape of a raw condition, such as a label, by its name; nothing if there is none."""
    pairs = model.built.pairs
    return {"condition": model.built.raw(model.data.shapes()).y} if pairs else {}


def _example(model: Trained, key: Array, x: Any, condition: Sequence[Any]) -> Any:
    """An example as the model takes it."""
    raw = Conditioned(x, *condition) if condition else x
    return model.built.preprocess(key, raw)


def _given(model: Trained, condition: Sequence[Any]) -> Any:
    """A condition as the model takes it, or None."""
    encode = model.built.condition
    return encode(*condition) if encode is not None and condition else None


def _encode(model: Trained) -> Callable:
    def encode(params: Params, key: Array, x: Any, *condition: Any) -> Any:
        example = _example(model, key, x, condition)
        return plain(mean_of(model.model.encode(params, example)))  # type: ignore[misc]

    return encode


def _decode(model: Trained, code: Any) -> Callable:
    def decode(params: Params, key: Array, z: Any, *condition: Any) -> Any:
        p = model.model.decode(params, _shaped(z, code), _given(model, condition))  # type: ignore[misc]
        return p.mean

    return decode


def _sample(model: Trained) -> Callable:
    draw: Any = model.model.draw
    decode: Any = model.model.decode

    def sample(params: Params, key: Array, seed: Array, *condition: Any) -> Any:
        key_z, key_x = jax.random.split(jax.random.key(seed))
        y = _given(model, condition)
        z = draw(params, key_z, y)
        p = decode(params, z, y)
        return {"z": plain(z), "mean": p.mean, "x": p.sample(key_x)}

    return sample


def _classify(model: Trained) -> Callable:
    unknown = [jnp.int32(-1)] if model.built.pairs else []

    def classify(params: Params, key: Array, x: Any) -> Array:
        example = _example(model, key, x, unknown)
        return jnp.exp(model.model.classify(params, example))  # type: ignore[misc]

    return classify


def code_of(model: Trained) -> Any:
    """The shapes of z: as the encoder gives it, or else as the prior does; None without both."""
    key, answers, condition = jax.random.key(0), model.model, _condition(model)

    def encoded(params: Params, x: Any, *condition: Any) -> Any:
        return mean_of(answers.encode(params, _example(model, key, x, condition)))  # type: ignore[misc]

    def drawn(params: Params, *condition: Any) -> Any:
        return answers.draw(params, key, _given(model, condition))  # type: ignore[misc]

    if answers.encode is not None:
        return jax.eval_shape(encoded, model.params, model.data.example(), *condition.values())
    if answers.draw is not None:
        return jax.eval_shape(drawn, model.params, *condition.values())
    return None


# Batches


def batched(function: Function) -> Callable:
    """The function of batches, ``(params, *inputs) -> outputs``.

    The key of a row is the one that the methods of ``Trained`` take for it.
    """

    def program(params: Params, *inputs: Any) -> Any:
        rows = jnp.arange(jax.tree.leaves(inputs)[0].shape[0])
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), rows)
        one = lambda key, *each: function.call(params, key, *each)
        return jax.vmap(one)(keys, *inputs)

    return program


def exported(
    function: Function,
    params: Params,
    platforms: Sequence[str] = PLATFORMS,
    batch_size: int | None = None,
    inside: bool = True,
) -> export.Exported:
    """A function as a program of ``jax.export``.

    Args:
      function: one of ``functions``.
      params: the parameters of the model.
      platforms: what the program is compiled for, of cpu, cuda, rocm and tpu.
      batch_size: examples in a batch; None is any number.
      inside: whether the program holds the parameters. Otherwise its first argument is the
        dictionary of arrays that ``model.safetensors`` holds.

    Raises ValueError if JAX cannot compile the function so.

    >>> import jaxvae
    >>> from jaxvae.uses import artefacts
    >>> model = jaxvae.load("runs/digits-digits-0")  # doctest: +SKIP
    >>> decode = artefacts.functions(model)["decode"]  # doctest: +SKIP
    >>> images = artefacts.exported(decode, model.params).call(z)  # doctest: +SKIP
    """
    size = export.symbolic_shape("b")[0] if batch_size is None else batch_size
    shapes = [
        jax.tree.map(lambda one: jax.ShapeDtypeStruct((size, *one.shape), one.dtype), each)
        for each in function.inputs.values()
    ]
    program, params = batched(function), jax.tree.map(jnp.asarray, params)
    if inside:
        jitted, given = jax.jit(lambda *inputs: program(params, *inputs)), []
    else:
        jitted = jax.jit(lambda arrays, *inputs: program(_shaped(arrays, params), *inputs))
        given = [
            {n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in records.named(params).items()}
        ]
    try:
        return export.export(jitted, platforms=tuple(platforms))(*given, *shapes)
    except (TypeError, ValueError, NotImplementedError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"JAX cannot compile the program: {first}") from error


def of_model(
    model: Trained,
    platforms: Sequence[str] = PLATFORMS,
    batch_size: int | None = None,
    inside: bool | None = None,
) -> list[Artefact]:
    """All programs of a trained model, such as ``decode.stablehlo``.

    ``inside`` says whether they hold the parameters; None does so up to 16 MiB. Raises ValueError
    as ``exported`` does.
    """
    check_library()
    if inside is None:
        inside = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params)) <= INSIDE
    made = []
    for name, function in functions(model).items():
        try:
            program = exported(function, model.params, platforms, batch_size, inside)
            content = bytes(program.serialize())
        except ValueError as error:
            raise ValueError(
                f"{name}: {error}. Give a batch size, or leave the programs out"
            ) from error
        weights = "inside" if inside else "first argument"
        about = described(program, function) | {"weights": weights}
        made.append(Artefact(f"{name}.stablehlo", content, about))
    return made


def check_library() -> None:
    """Raises ValueError without the library that writes programs."""
    try:
        import flatbuffers  # noqa: F401
    except ImportError:
        raise ValueError(
            "programs of jax.export need flatbuffers: pip install 'jaxvae[export]', or leave them "
            "out with --no-programs"
        ) from None


def described(program: export.Exported, function: Function) -> dict[str, Any]:
    """Shapes and types of a program by name, and what it is made for."""
    inputs = jax.tree.unflatten(program.in_tree, program.in_avals)[0][-len(function.inputs) :]
    outputs = jax.tree.unflatten(program.out_tree, program.out_avals)
    given = zip(function.inputs, inputs, strict=True)
    return {
        "inputs": {name: jax.tree.map(kind_of, each) for name, each in given},  # in this order
        "outputs": jax.tree.map(kind_of, plain(outputs)),
        "platforms": list(program.platforms),
        "calling_convention": program.calling_convention_version,
    }
