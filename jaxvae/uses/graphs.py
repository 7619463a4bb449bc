"""Encoder and decoder of a trained model as graphs of ONNX.

A function is traced by JAX for a batch of unknown size, and each primitive becomes one or a few
operators of ONNX (https://onnx.ai/onnx/operators, opset 18). What depends on parameters alone is
computed now. ``OPERATORS`` lists the primitives: fully connected, convolutional and
residual networks need them, and the means of common distributions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.extend.core import Literal

from jaxvae import records
from jaxvae.distributions import mean_of
from jaxvae.runs.loading import Trained
from jaxvae.uses.artefacts import Artefact, code_of, kind_of, plain

OPSET, IR = 18, 9  # both of 2023
BATCH = "b"  # the name of the size of a batch


class Graph:
    """A graph that is being written. A value is an array, if it is known now, or else a name."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.arrays: list[Any] = []
        self.count = 0
        self.batch = ""  # the name of a vector of one number, the size of the batch

    def add(self, operator: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """A node of the graph. Returns the name of its output, or a list of names."""
        from onnx import helper

        names = [self._fresh() for _ in range(outputs)]
        inputs = tuple(map(self.named, inputs))
        self.nodes.append(helper.make_node(operator, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def named(self, value: Any) -> str:
        """The name of a value, which is written to the graph if it is known."""
        from onnx import numpy_helper

        if isinstance(value, str):
            return value
        name = self._fresh()
        self.arrays.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def shape(self, sizes: Sequence[Any]) -> Any:
        """A shape, in which the size of the batch may be symbolic."""
        numbers = [np.array([n], np.int64) if isinstance(n, int) else self.batch for n in sizes]
        if all(isinstance(n, int) for n in sizes):
            return np.array(sizes, np.int64)
        return numbers[0] if len(numbers) == 1 else self.add("Concat", *numbers, axis=0)

    def _fresh(self) -> str:
        self.count += 1
        return f"v{self.count}"


# Operators: (graph, equation, inputs) -> output


def _named(operator: str) -> Callable:
    return lambda graph, equation, *inputs: graph.add(operator, *inputs)


def _reshape(graph: Graph, equation: Any, x: Any, *_: Any) -> Any:
    sizes = [n if isinstance(n, int) else -1 for n in equation.outvars[0].aval.shape]
    return graph.add("Reshape", x, np.array(sizes, np.int64))


def _broadcast(graph: Graph, equation: Any, x: Any, *_: Any) -> Any:
    out, places = equation.params["shape"], equation.params["broadcast_dimensions"]
    before = dict(zip(places, equation.invars[0].aval.shape, strict=True))
    ones = [before.get(axis, 1) for axis in range(len(out))]
    sizes = [n if isinstance(n, int) else -1 for n in ones]
    x = graph.add("Reshape", x, np.array(sizes, np.int64))
    return x if tuple(ones) == tuple(out) else graph.add("Expand", x, graph.shape(out))


def _transpose(graph: Graph, equation: Any, x: Any) -> Any:
    return graph.add("Transpose", x, perm=list(equation.params["permutation"]))


def _cast(graph: Graph, equation: Any, x: Any) -> Any:
    from onnx import helper

    dtype = np.dtype(equation.params["new_dtype"])
    return graph.add("Cast", x, to=helper.np_dtype_to_tensor_dtype(dtype))


def _slice(graph: Graph, equation: Any, x: Any) -> Any:
    starts, ends = equation.params["start_indices"], equation.params["limit_indices"]
    steps = equation.params["strides"] or (1,) * len(starts)
    axes = [i for i, end in enumerate(ends) if isinstance(end, int)]
    chosen = [np.array([each[i] for i in axes], np.int64) for each in (starts, ends)]
    return graph.add(
        "Slice", x, *chosen, np.array(axes, np.int64), np.array([steps[i] for i in axes], np.int64)
    )


def _split(graph: Graph, equation: Any, x: Any) -> Any:
    sizes = np.array(equation.params["sizes"], np.int64)
    parts = graph.add("Split", x, sizes, outputs=len(sizes), axis=equation.params["axis"])
    return [parts] if len(sizes) == 1 else parts


def _concatenate(graph: Graph, equation: Any, *inputs: Any) -> Any:
    return graph.add("Concat", *inputs, axis=equation.params["dimension"])


def _pad(graph: Graph, equation: Any, x: Any, value: Any) -> Any:
    pads = equation.params["padding_config"]
    if any(step for _, _, step in pads):
        raise ValueError("ONNX has no padding between numbers")
    ends = [low for low, _, _ in pads] + [high for _, high, _ in pads]
    return graph.add("Pad", x, np.array(ends, np.int64), value)


def _select(graph: Graph, equation: Any, which: Any, no: Any, yes: Any) -> Any:
    return graph.add("Where", which, yes, no)


def _power(graph: Graph, equation: Any, x: Any) -> Any:
    return graph.add("Pow", x, np.array(equation.params["y"], equation.outvars[0].aval.dtype))


def _reduced(operator: str) -> Callable:
    def reduce(graph: Graph, equation: Any, x: Any) -> Any:
        axes = np.array(equation.params["axes"], np.int64)
        return graph.add(operator, x, axes, keepdims=0)

    return reduce


def _of_one(equation: Any) -> np.ndarray:
    return np.ones((), equation.outvars[0].aval.dtype)


def _dot(graph: Graph, equation: Any, x: Any, w: Any) -> Any:
    (of_x, of_w), batch = equation.params["dimension_numbers"]
    ranks = [var.aval.ndim for var in equation.invars]
    if any(batch) or of_x != (ranks[0] - 1,) or ranks[1] != 2:
        raise ValueError("ONNX is written for products of a batch and a matrix alone")
    if of_w == (1,):
        w = graph.add("Transpose", w, perm=[1, 0]) if isinstance(w, str) else np.transpose(w)
    return graph.add("MatMul", x, w)


def _convolution(graph: Graph, equation: Any, x: Any, kernel: Any) -> Any:
    """A convolution, or the transposed one that JAX writes as one of an image with holes."""
    how = equation.params
    numbers, holes, spread = how["dimension_numbers"], how["lhs_dilation"], how["rhs_dilation"]
    if isinstance(kernel, str) or how["batch_group_count"] > 1:
        raise ValueError("ONNX is written for convolutions whose kernel is a parameter")
    kernel = np.transpose(np.asarray(kernel), numbers.rhs_spec)  # [O, I, H, W]
    pads, strides = np.array(how["padding"]), how["window_strides"]
    operator, group = "Conv", how["feature_group_count"]
    if max(holes) > 1:
        if max(strides) > 1 or group > 1:
            raise ValueError("ONNX has no transposed convolution with strides or groups")
        operator, strides = "ConvTranspose", holes
        reach = np.array(spread) * (np.array(kernel.shape[2:]) - 1)
        pads = reach[:, None] - pads
        kernel = np.flip(kernel, tuple(range(2, kernel.ndim))).swapaxes(0, 1)
    if pads.min() < 0:
        raise ValueError("ONNX has no convolution with negative padding")
    image = graph.add("Transpose", x, perm=list(numbers.lhs_spec))
    y = graph.add(
        operator,
        image,
        np.ascontiguousarray(kernel),
        strides=list(map(int, strides)),
        dilations=list(map(int, spread)),
        pads=[int(n) for n in pads.T.reshape(-1)],
        group=int(group),
    )
    return graph.add("Transpose", y, perm=[int(i) for i in np.argsort(numbers.out_spec)])


SAME_NAMES = {
    **{"add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "pow": "Pow"},
    **{"max": "Max", "min": "Min", "neg": "Neg", "abs": "Abs", "sign": "Sign", "exp": "Exp"},
    **{"log": "Log", "sqrt": "Sqrt", "tanh": "Tanh", "logistic": "Sigmoid", "erf": "Erf"},
    **{"sin": "Sin", "cos": "Cos", "floor": "Floor", "ceil": "Ceil", "copy": "Identity"},
    **{"lt": "Less", "gt": "Greater", "le": "LessOrEqual", "ge": "GreaterOrEqual", "eq": "Equal"},
    **{"and": "And", "or": "Or", "not": "Not", "stop_gradient": "Identity"},
}
OPERATORS: dict[str, Callable] = {
    **{name: _named(operator) for name, operator in SAME_NAMES.items()},
    "reshape": _reshape,
    "squeeze": _reshape,
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "convert_element_type": _cast,
    "slice": _slice,
    "split": _split,
    "concatenate": _concatenate,
    "pad": _pad,
    "select_n": _select,
    "integer_pow": _power,
    "square": lambda graph, equation, x: graph.add("Mul", x, x),
    "rsqrt": lambda graph, equation, x: graph.add("Reciprocal", graph.add("Sqrt", x)),
    "erfc": lambda graph, e, x: graph.add("Sub", _of_one(e), graph.add("Erf", x)),
    "is_finite": lambda graph, equation, x: graph.add(
        "Not", graph.add("Or", graph.add("IsInf", x), graph.add("IsNaN", x))
    ),
    "log1p": lambda graph, e, x: graph.add("Log", graph.add("Add", x, _of_one(e))),
    "expm1": lambda graph, e, x: graph.add("Sub", graph.add("Exp", x), _of_one(e)),
    "ne": lambda graph, equation, x, y: graph.add("Not", graph.add("Equal", x, y)),
    "clamp": lambda graph, e, low, x, high: graph.add("Min", graph.add("Max", x, low), high),
    "reduce_sum": _reduced("ReduceSum"),
    "reduce_max": _reduced("ReduceMax"),
    "reduce_min": _reduced("ReduceMin"),
    "reduce_prod": _reduced("ReduceProd"),
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
}


# Traces


def _inner(equation: Any) -> Any:
    """The closed jaxpr that an equation calls with its inputs, or None."""
    params = equation.params
    inner = params.get("jaxpr", params.get("call_jaxpr", params.get("fun_jaxpr")))
    if equation.primitive.name == "scan" or inner is None:
        return None
    return inner if hasattr(inner, "consts") else jax.extend.core.ClosedJaxpr(inner, ())


def _unrolled(graph: Graph, equation: Any, values: Sequence[Any]) -> list[Any]:
    """The carry after a loop over parameters, turn by turn."""
    params = equation.params
    num_consts, num_carry = params["num_consts"], params["num_carry"]
    consts, carry = values[:num_consts], list(values[num_consts : num_consts + num_carry])
    rows = values[num_consts + num_carry :]
    if any(isinstance(each, str) for each in rows) or len(equation.outvars) > num_carry:
        raise ValueError("ONNX is written for loops over parameters alone")
    turns = range(params["length"])
    for turn in reversed(turns) if params["reverse"] else turns:
        carry = _written(graph, params["jaxpr"], [*consts, *carry, *(each[turn] for each in rows)])
    return carry


def _written(graph: Graph, closed: Any, inputs: Sequence[Any]) -> list[Any]:
    """Writes a trace to the graph, and returns its outputs."""
    jaxpr = closed.jaxpr
    known = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    known |= dict(zip(jaxpr.invars, inputs, strict=True))
    value = lambda atom: np.asarray(atom.val) if isinstance(atom, Literal) else known[atom]
    for equation in _needed(jaxpr):
        results = _equation(graph, equation, [value(atom) for atom in equation.invars])
        known |= dict(zip(equation.outvars, results, strict=True))
    return [value(atom) for atom in jaxpr.outvars]


def _needed(jaxpr: Any) -> list[Any]:
    """The equations that the outputs depend on."""
    wanted, needed = {v for v in jaxpr.outvars if not isinstance(v, Literal)}, []
    for equation in reversed(jaxpr.eqns):
        if wanted.intersection(equation.outvars):
            wanted |= {v for v in equation.invars if not isinstance(v, Literal)}
            needed.append(equation)
    return needed[::-1]


def _equation(graph: Graph, equation: Any, values: list[Any]) -> list[Any]:
    """The outputs of an equation: arrays if all of its inputs are, and otherwise names."""
    primitive, outputs = equation.primitive, equation.outvars
    inner = _inner(equation)
    if inner is not None:
        return _written(graph, inner, values)
    sizes = [size for each in outputs for size in getattr(each.aval, "shape", ())]
    if not any(isinstance(v, str) for v in values) and all(isinstance(n, int) for n in sizes):
        results = primitive.bind(*map(jnp.asarray, values), **equation.params)
        return list(results) if primitive.multiple_results else [results]
    if primitive.name == "scan":
        return _unrolled(graph, equation, values)
    if primitive.name not in OPERATORS:
        raise ValueError(f"no operator of ONNX is written for {primitive.name}")
    results = OPERATORS[primitive.name](graph, equation, *values)
    return results if isinstance(results, list) else [results]


def graph_of(
    name: str, function: Callable, inputs: dict[str, jax.ShapeDtypeStruct]
) -> tuple[Any, dict[str, Any]]:
    """A model of ONNX for batches of any size of a function of one example, and its description.

    ``inputs`` are the shapes of one example, by name, and the function gives an array or a
    dictionary of arrays. Raises ValueError for what no operator is written for.
    """
    from onnx import checker, helper

    size = export.symbolic_shape(BATCH)[0]
    shapes = [jax.ShapeDtypeStruct((size, *one.shape), one.dtype) for one in inputs.values()]
    closed, out = jax.make_jaxpr(jax.vmap(function), return_shape=True)(*shapes)
    graph = Graph()
    first = next(iter(inputs))
    graph.batch = graph.add("Shape", first, start=0, end=1)
    given = dict(zip(inputs, shapes, strict=True))
    outputs = {n or "mean": s for n, s in records.named(out).items()}
    for name_out, value in zip(outputs, _written(graph, closed, list(inputs)), strict=True):
        from_value = graph.named(value)
        graph.nodes.append(helper.make_node("Identity", [from_value], [name_out]))
    ends = [[_info(n, s) for n, s in arrays.items()] for arrays in (given, outputs)]
    made = helper.make_model(
        helper.make_graph(graph.nodes, name, ends[0], ends[1], graph.arrays),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR,
        producer_name="jaxvae",
    )
    checker.check_model(made, full_check=True)
    about = {"inputs": given, "outputs": outputs}
    kinds = {n: {name: kind_of(s) for name, s in each.items()} for n, each in about.items()}
    return made, kinds | {"opset": OPSET}


def _info(name: str, shape: Any) -> Any:
    from onnx import helper

    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(shape.dtype))
    sizes = [n if isinstance(n, int) else BATCH for n in shape.shape]
    return helper.make_tensor_value_info(name, dtype, sizes)


# Models


def of_model(model: Trained) -> list[Artefact]:
    """``encode.onnx`` and ``decode.onnx`` of a trained model.

    ``encode`` takes x after preprocessing, whose random part ONNX does not have, and gives the mean
    of q(z|x). ``decode`` takes z, and gives the mean of p(x|z). A conditional model takes the
    condition as the model does, such as a one-hot label. Raises ValueError for a model that needs
    other operators.
    """
    check_library()
    made = []
    for name, (function, inputs) in _functions(model).items():
        try:
            graph, about = graph_of(name, function, inputs)
        except ValueError as error:
            raise ValueError(f"{name}.onnx: {error}; leave out --onnx") from error
        made.append(Artefact(f"{name}.onnx", graph.SerializeToString(), about))
    return made


def _functions(model: Trained) -> dict[str, tuple[Callable, dict[str, Any]]]:
    """Functions of one example, and the shapes of their inputs by name."""
    built, asked, params = model.built, model.model, model.params
    raw = built.raw(model.data.shapes())
    example = jax.eval_shape(built.preprocess, jax.random.key(0), raw)
    condition = None
    if built.condition is not None:
        condition = jax.eval_shape(lambda example: asked.parts(example)[1], example)
    code = code_of(model)

    def encode(*leaves: Any) -> Any:
        x = jax.tree.unflatten(jax.tree.structure(example), leaves)
        return plain(mean_of(asked.encode(params, x)))  # type: ignore[misc]

    def decode(*leaves: Any) -> Any:
        z, y = jax.tree.unflatten(jax.tree.structure((code, condition)), leaves)
        return asked.decode(params, z, y).mean  # type: ignore[misc]

    made: dict[str, tuple[Callable, dict[str, Any]]] = {}
    if asked.encode is not None:
        made["encode"] = encode, _by_name("x", example)
    if asked.decode is not None and code is not None:
        made["decode"] = decode, _by_name("z", code) | _by_name("condition", condition)
    return made


def _by_name(name: str, tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths; a tree that is a leaf has the name."""
    return {path or name: leaf for path, leaf in records.named(tree).items()}


def check_library() -> None:
    """Raises ValueError without the library that writes graphs."""
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise ValueError(
            "graphs of ONNX need onnx: pip install 'jaxvae[export]', or leave out --onnx"
        ) from None
