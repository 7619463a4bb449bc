"""Exported models: what is saved is what is opened, and programs that run without jaxvae."""

from __future__ import annotations

import ast
import base64
import http.server
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harness import UNOPTIMIZED, contents, cut, flip
from jax import export as jax_export
from scipy import stats
from test_families import run_of

import jaxvae
from jaxvae import checkpoints, families, kernels, settings, tensors, training
from jaxvae.families import Data
from jaxvae.runs import folders, weights
from jaxvae.runs.exporting import export
from jaxvae.runs.loading import of_run
from jaxvae.uses import artefacts, cards, pretrained

DIGITS = Data(
    *("digits", (8, 8, 1), "uint8", 17, "scale", 1437),
    classes=tuple("0123456789"),
    num_classes=10,
    raw_levels=17,
)
RESULT = {
    **{"test_elbo": -12.5, "elbo_standard_error": 0.25, "reconstruction": -10.0, "kl": 2.5},
    **{"test_log_likelihood": None, "active_units": 3, "num_examples": 360, "steps": 7},
}
SMALL: dict[str, Any] = {"hidden": (8,), "latent": 3}


def model_of(preset: str, workdir: Path, data: Data = DIGITS, **named: Any) -> jaxvae.Trained:
    """A model with drawn parameters, whose run folder has a configuration and a result."""
    config = settings.changed(families.preset(preset), **named)
    place = {"dataset": "digits", "data_dir": "/d", "stream": False}
    record = folders.Record(families.family_of(config), config, data, place)
    built = record.build()
    shapes = jax.eval_shape(built.parameters, built.fresh_state(data))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) / 3, s.dtype), shapes)
    workdir.mkdir()
    folders.write_json(workdir / "config.json", record.json())
    folders.write_json(workdir / "result.json", RESULT)
    return jaxvae.Trained(built, data, params, 7, workdir, RESULT)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> jaxvae.Trained:
    return model_of("digits", tmp_path_factory.mktemp("dense") / "run", **SMALL)


@pytest.fixture(scope="module")
def conv(tmp_path_factory: pytest.TempPathFactory) -> jaxvae.Trained:
    return model_of("conv", tmp_path_factory.mktemp("conv") / "run", hidden=(4,), latent=3)


@pytest.fixture(scope="module")
def made(dense: jaxvae.Trained) -> dict[str, artefacts.Artefact]:
    """The programs of the dense model, by file."""
    return {each.file: each for each in artefacts.of_model(dense)}


@pytest.fixture
def saved(dense: jaxvae.Trained, tmp_path: Path) -> Path:
    return pretrained.save_pretrained(dense, tmp_path / "saved")


X = np.random.default_rng(1).integers(0, 17, (5, 8, 8, 1), np.uint8)


# Folders


def check_same(one: jaxvae.Trained, other: jaxvae.Trained) -> None:
    """All that a model is made of, bit for bit; paths of this machine may have become names."""
    assert jax.tree.structure(one.params) == jax.tree.structure(other.params)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert one.workdir is not None and other.workdir is not None
    before, after = (folders.read(model.workdir).json() for model in (one, other))
    assert pretrained.portable(before) == pretrained.portable(after)
    assert (one.data, one.step, one.result) == (other.data, other.step, other.result)


def test_what_is_saved_is_what_is_opened(
    dense: jaxvae.Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice in turn, without a pickle, and with the same bytes of weights."""

    def refuse(*args: Any, **named: Any) -> Any:
        raise AssertionError("a pickle")

    for name in ("load", "loads", "dump", "dumps", "Unpickler", "Pickler"):
        monkeypatch.setattr(pickle, name, refuse)
    folder = pretrained.save_pretrained(dense, tmp_path / "one")
    opened = pretrained.from_pretrained(folder)
    check_same(dense, opened)
    again = pretrained.save_pretrained(opened, tmp_path / "two")
    check_same(dense, jaxvae.load(again, "best"))
    assert (folder / weights.FILE).read_bytes() == (again / weights.FILE).read_bytes()


def test_other_libraries_read_the_files(dense: jaxvae.Trained, saved: Path) -> None:
    """safetensors reads the arrays by their paths, and the hub the head of the card."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    read = pytest.importorskip("safetensors.numpy").load_file(saved / weights.FILE)
    kernel = read["decoder/output/kernel"]
    np.testing.assert_array_equal(kernel, dense.params["decoder"]["output"]["kernel"])
    assert len(read) == len(jax.tree.leaves(dense.params))
    head = huggingface_hub.metadata_load(saved / "README.md")
    assert head["library_name"] == "jaxvae" and "license" not in head


def test_a_card_says_what_a_reader_needs(
    dense: jaxvae.Trained, made: dict[str, artefacts.Artefact], tmp_path: Path
) -> None:
    assert dense.workdir is not None
    (dense.workdir / "figures").mkdir(exist_ok=True)
    (dense.workdir / "figures" / "samples.png").write_bytes(b"picture")
    files = list(made.values())
    folder = pretrained.save_pretrained(dense, tmp_path / "vae-digits", files, "apache-2.0")
    card = (folder / "README.md").read_text()
    for words in (
        *('license: "apache-2.0"', "# vae-digits", "trained on digits", "1,182 parameters"),
        *('from_pretrained("vae-digits")', "| ELBO | -12.500 ± 0.250 nats |", "`hidden` | `[8]`"),
        *("| `decode.stablehlo` | z `float32[b,3]` | `float32[b,8,8,1]` |", "cpu, cuda, tpu"),
        *("pip install jax flatbuffers`", "as the data set holds them"),
        *("every pixel becomes pixel / 16", "![samples](figures/samples.png)"),
        *("1,437 training examples", "jaxvae evaluate vae-digits"),
    ):
        assert words in card, words
    assert (folder / "figures" / "samples.png").read_bytes() == b"picture"
    unmeasured = cards.card("a", dense.__class__(**{**vars(dense), "step": 8}), config(folder), [])
    assert "It was not evaluated at this step." in unmeasured
    assert "No licence is stated." in unmeasured


def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def test_config_json_names_versions_and_sums_and_no_path_of_this_machine(
    made: dict[str, artefacts.Artefact], tmp_path: Path
) -> None:
    place = str(tmp_path / "secret" / "images.npy")
    data = DIGITS._replace(name=place, classes=("/a", "b"), num_classes=2)
    model = model_of("digits", tmp_path / "run", data, **SMALL, dataset=place)
    folder = pretrained.save_pretrained(model, tmp_path / "out", list(made.values()))
    held = config(folder)
    assert (held["jax"], held["version"]) == (jax.__version__, jaxvae.__version__)
    for each in (held["weights"], *held["artefacts"]):
        said = subprocess.run(["sha256sum", folder / each["file"]], capture_output=True, text=True)
        assert said.stdout.startswith(each["sha256"])
    assert str(tmp_path) not in (folder / "config.json").read_text()
    assert str(tmp_path) not in (folder / "README.md").read_text()
    assert held["config"]["dataset"] == held["data"]["name"] == "images.npy"
    assert held["data"]["classes"] == ["/a", "b"] and held["place"]["data_dir"] is None


def rewritten(folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    """Other weights with the SHA-256 that belongs to them."""
    arrays = dict(tensors.read_safetensors(folder / weights.FILE).arrays)
    change(arrays)
    tensors.write_safetensors(folder / weights.FILE, arrays)
    digest = weights.digest((folder / weights.FILE).read_bytes())
    held = config(folder) | {"weights": {"file": weights.FILE, "sha256": digest}}
    (folder / "config.json").write_text(json.dumps(held))


KERNEL = "decoder/output/kernel"
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    **{
        f"a bit at {place}": (
            lambda folder, place=place: flip(folder / weights.FILE, place),
            "is damaged: its SHA-256 is not the one that config.json states",
        )
        for place in (0.0, 0.1, 0.5, 0.9, 1.0)
    },
    "cut": (lambda folder: cut(folder / weights.FILE), "is damaged: its SHA-256"),
    "no sum": (
        lambda folder: (folder / "config.json").write_text(
            json.dumps({n: v for n, v in config(folder).items() if n != "weights"})
        ),
        "its SHA-256 is not the one",
    ),
    "a name less": (
        lambda folder: rewritten(folder, lambda arrays: arrays.pop(KERNEL)),
        f"1 arrays differ, the first is {KERNEL}, absent in the checkpoint",
    ),
    "a name more": (
        lambda folder: rewritten(folder, lambda arrays: arrays.update(more=np.zeros(2))),
        "the first is more, float64[2] in the checkpoint and absent here",
    ),
    "a shape": (
        lambda folder: rewritten(folder, lambda a: a.update({KERNEL: a[KERNEL].T})),
        f"the first is {KERNEL}, float32[64, 8] in the checkpoint and float32[8, 64] here",
    ),
    "no weights": (lambda folder: (folder / weights.FILE).unlink(), "has no model.safetensors"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "is damaged"),
}


@pytest.mark.parametrize("way", DAMAGES)
def test_damage_is_refused(way: str, saved: Path) -> None:
    damage, words = DAMAGES[way]
    damage(saved)
    with pytest.raises(ValueError, match=re.escape(words)):
        pretrained.from_pretrained(saved)


def test_what_cannot_be_saved_is_refused(dense: jaxvae.Trained, saved: Path) -> None:
    before = contents(saved)
    with pytest.raises(ValueError, match="is not empty; name another folder"):
        pretrained.save_pretrained(dense, saved)
    with pytest.raises(ValueError, match="is a file; name a folder"):
        pretrained.save_pretrained(dense, saved / "config.json")
    with pytest.raises(ValueError, match=r"given a VAE: .* write them as programs of jax.export"):
        pretrained.save_pretrained(dense.source, saved / "x")
    unplaced = jaxvae.Trained(dense.built, dense.data, dense.params, 7)
    with pytest.raises(ValueError, match="of no run folder"):
        pretrained.save_pretrained(unplaced, saved / "x")
    with pytest.raises(ValueError, match="holds an exported model; pass another --workdir"):
        folders.save(saved, folders.read(saved))
    with pytest.raises(ValueError, match="has no checkpoint '6'; it was exported at 7"):
        jaxvae.load(saved, 6)
    assert contents(saved) == before


# The hub


def test_a_name_of_the_hub_is_opened_without_a_network(
    dense: jaxvae.Trained, saved: Path, tmp_path: Path
) -> None:
    """From the files that the hub's library keeps, in its layout."""
    pytest.importorskip("huggingface_hub")
    kept, commit = tmp_path / "cache" / "models--user--vae", COMMIT
    shutil.copytree(saved, kept / "snapshots" / commit)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(commit)
    where: dict[str, Any] = {"cache_dir": tmp_path / "cache", "local_files_only": True}
    check_same(dense, pretrained.from_pretrained("user/vae", **where))
    for name, words in {
        "user/other": "there is no folder user/other, and the hub says: ",
        "a/b/c": "there is no folder a/b/c, and the hub says: Repo id must be",
    }.items():
        with pytest.raises(ValueError, match=words):
            pretrained.from_pretrained(name, **where)


COMMIT = "0123456789abcdef" * 2 + "01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub of one model on this machine, which answers the hub's library as the true one does."""

    files: ClassVar[dict[str, bytes]] = {}

    def log_message(self, *args: Any) -> None:
        """Says nothing."""

    def answer(self, content: Any, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        url = f"http://{self.headers['Host']}/user/vae"
        if "/preupload/" in self.path:
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            names = [{"path": each["path"]} | mode for each in json.loads(body)["files"]]
            return self.answer({"files": names})
        for line in body.splitlines() if "/commit/" in self.path else ():
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                self.files[entry["value"]["path"]] = content
        self.answer({"url": url, "commitUrl": f"{url}/commit/{COMMIT}", "commitOid": COMMIT})

    def do_GET(self) -> None:
        sizes = [{"path": n, "size": len(c), "oid": "0"} for n, c in self.files.items()]
        if "/resolve/" in self.path:
            content = self.files[self.path.partition("/resolve/")[2].partition("/")[2]]
            digest = weights.digest(content)
            self.answer(content, ETag=f'"{digest}"', X_Repo_Commit=COMMIT)
        elif "/tree/" in self.path:
            self.answer([each | {"type": "file"} for each in sizes])
        else:
            siblings = [{"rfilename": name} for name in self.files]
            self.answer({"id": "user/vae", "sha": COMMIT, "siblings": siblings})

    do_HEAD = do_GET


def test_a_model_is_uploaded_and_fetched_again(
    dense: jaxvae.Trained, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the hub's own library, byte for byte; then opened without the hub."""
    constants = pytest.importorskip("huggingface_hub").constants
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    endpoint = f"http://127.0.0.1:{server.server_port}"
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        said = pretrained.push_to_hub(saved, "user/vae", token="hf_none")
        assert said == f"{endpoint}/user/vae/commit/{COMMIT}"
        assert Hub.files == contents(saved)
        fetched = pretrained.from_pretrained("user/vae", cache_dir=tmp_path / "cache")
    finally:
        server.shutdown()
        server.server_close()
    check_same(dense, fetched)
    check_same(dense, pretrained.from_pretrained("user/vae", cache_dir=tmp_path / "cache"))
    with pytest.raises(ValueError, match="the hub did not take user/vae: "):
        pretrained.push_to_hub(saved, "user/vae", token="hf_none")


def test_libraries_that_are_not_there_are_named(
    dense: jaxvae.Trained, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in ("huggingface_hub", "flatbuffers", "onnx", "jinja2"):
        monkeypatch.setitem(sys.modules, library, None)
    install = re.escape("pip install 'jaxvae[export]'")
    with pytest.raises(ValueError, match=f"there is no folder user/vae, and the hub.*{install}"):
        pretrained.from_pretrained("user/vae")
    with pytest.raises(ValueError, match=f"push_to_hub needs huggingface_hub: {install}"):
        pretrained.push_to_hub(saved, "user/vae")
    assert dense.workdir is not None
    for flags, words in (
        ({}, f"need flatbuffers: {install}, or leave them out with --no-programs"),
        ({"programs": False, "onnx": True}, f"need onnx: {install}"),
        ({"programs": False, "push_to": "user/vae"}, f"needs huggingface_hub: {install}"),
    ):
        with pytest.raises(ValueError, match=words):
            export(dense.workdir, tmp_path / "out", **flags)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_libraries_that_are_imported_are_declared() -> None:
    """The card is written without one; none of the others is undeclared."""
    root = Path(__file__).parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + project["optional-dependencies"]["export"]
    declared = {re.split(r"[>=\[]", each)[0].replace("-", "_") for each in asked}
    imported = set()
    for module in (pretrained, cards, artefacts, weights):
        for node in ast.walk(ast.parse(Path(module.__file__ or "").read_text())):
            if isinstance(node, ast.Import):
                imported |= {each.name.partition(".")[0] for each in node.names}
            if isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
    others = imported - set(sys.stdlib_module_names) - {"jaxvae"}
    assert {"jax", "huggingface_hub", "flatbuffers"} <= others <= declared


# Programs

ALONE = """
import sys
for name in ("jaxvae", "flax", "optax", "orbax"):
    sys.modules[name] = None  # an import would fail
import jax, numpy as np
from jax import export
given, out = np.load(sys.argv[1]), {}
for file in sys.argv[3:]:
    program = export.deserialize(bytearray(open(file, "rb").read()))
    assert program.platforms == ("cpu", "cuda", "tpu"), program.platforms
    for name in given:
        kind, part = name.split("-")
        if "/" + kind + "." in file:
            results = jax.tree.leaves(program.call(given[name]))
            out |= {f"{file} {part} {i}": x for i, x in enumerate(results)}
np.savez(sys.argv[2], **out)
"""


def alone(folder: Path, programs: dict[str, bytes], given: dict[str, Any]) -> dict[str, Any]:
    """What programs give in a process that cannot import jaxvae, for inputs NAME-SIZE."""
    np.savez(folder / "given.npz", **given)
    for file, content in programs.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(content)
    command = [sys.executable, "-I", "-c", ALONE, "given.npz", "out.npz", *programs]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | UNOPTIMIZED, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with np.load(folder / "out.npz") as file:
        return dict(file)


Z = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


def test_programs_run_in_a_process_without_jaxvae(
    dense: jaxvae.Trained,
    conv: jaxvae.Trained,
    made: dict[str, artefacts.Artefact],
    of_conv: dict[str, Any],
    tmp_path: Path,
) -> None:
    """With difference 0.0 to this process, for batches of any size."""
    programs = {
        "dense/encode.stablehlo": made["encode.stablehlo"].content,
        "conv/decode.stablehlo": bytes(of_conv["decode"].serialize()),
    }
    out = alone(tmp_path, programs, {"encode-1": X[:1], "encode-5": X, "decode-5": Z})
    codes, images = out["dense/encode.stablehlo 5 0"], out["conv/decode.stablehlo 5 0"]
    assert np.abs(codes - dense.encode(X)).max() == 0.0
    np.testing.assert_allclose(out["dense/encode.stablehlo 1 0"], codes[:1], atol=1e-6)
    assert np.abs(images - of_conv["decode"].call(Z)).max() == 0.0
    # The convolutions of the library sum in another order than XLA's own.
    np.testing.assert_allclose(images, conv.decode(Z), atol=1e-6)


@pytest.mark.slow
def test_samplers_run_in_a_process_without_jaxvae(
    made: dict[str, artefacts.Artefact], conv: jaxvae.Trained, tmp_path: Path
) -> None:
    """With difference 0.0, and every part of their outputs."""
    of_both = {"dense": made["sample.stablehlo"], "conv": artefacts.of_model(conv)[2]}
    programs = {f"{name}/sample.stablehlo": each.content for name, each in of_both.items()}
    seeds = np.arange(9, 14, dtype=np.uint32)
    out = alone(tmp_path, programs, {"sample-1": seeds[:1], "sample-5": seeds})
    for file, content in programs.items():
        here = jax_export.deserialize(bytearray(content)).call(seeds)
        for i, each in enumerate(jax.tree.leaves(here)):
            assert np.abs(out[f"{file} 5 {i}"] - each).max() == 0.0
            np.testing.assert_allclose(out[f"{file} 1 {i}"], each[:1], atol=1e-6)


@pytest.fixture(scope="module")
def of_conv(conv: jaxvae.Trained) -> dict[str, Any]:
    """The encoder and the decoder of the convolutional model as programs."""
    functions = artefacts.functions(conv)
    return {n: artefacts.exported(functions[n], conv.params) for n in ("encode", "decode")}


def test_programs_are_of_stock_operations_for_three_platforms(
    conv: jaxvae.Trained, of_conv: dict[str, Any]
) -> None:
    """A free size cannot be decided on, so the convolutions are XLA's own."""
    for program in of_conv.values():
        assert program.platforms == ("cpu", "cuda", "tpu")
        assert "stablehlo.convolution" in program.mlir_module()
        assert str(program.in_avals[0].shape[0]) == "b"
    encode = artefacts.functions(conv)["encode"]
    fixed = artefacts.exported(encode, conv.params, ("cpu",), batch_size=2)
    assert fixed.in_avals[0].shape[0] == 2 and fixed.platforms == ("cpu",)


def test_a_product_may_be_large_where_the_library_would_decide_on_its_size() -> None:
    """With more than 512 rows and 130 columns it is another program in training on a CPU."""
    rng = np.random.default_rng(2)
    x, w = (rng.normal(size=shape).astype(np.float32) for shape in ((600, 20), (20, 130)))
    rows = jax.ShapeDtypeStruct((*jax_export.symbolic_shape("b"), 20), np.float32)
    product = jax.vmap(lambda x: kernels.dot_general(x, w, (((0,), (0,)), ((), ()))))
    program = jax_export.export(jax.jit(product), platforms=artefacts.PLATFORMS)(rows)
    np.testing.assert_allclose(program.call(x), x @ w, atol=1e-4)


def test_weights_may_be_an_argument(
    dense: jaxvae.Trained, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another library reads them from the file."""
    functions = {"encode": artefacts.functions(dense)["encode"]}
    monkeypatch.setattr(artefacts, "functions", lambda model: functions)
    arrays = pytest.importorskip("safetensors.numpy").load_file(saved / weights.FILE)
    (made,) = artefacts.of_model(dense, inside=False)
    assert made.about["weights"] == "first argument"
    program = jax_export.deserialize(bytearray(made.content))
    np.testing.assert_array_equal(program.call(arrays, X), dense.encode(X))
    listed = [made.about | {"file": made.file}]
    card = cards.card("a", dense, config(saved) | {"artefacts": listed}, [])
    assert "encode.call(weights, x)" in card and 'load_file("model.safetensors")' in card


def test_a_seed_draws_from_the_model_whatever_its_place(
    made: dict[str, artefacts.Artefact],
) -> None:
    program = jax_export.deserialize(bytearray(made["sample.stablehlo"].content))
    seeds = np.r_[np.arange(600), 7, 3].astype(np.uint32)
    out = program.call(seeds)
    for name in ("z", "mean", "x"):
        np.testing.assert_array_equal(out[name][600:], out[name][np.array([7, 3])])
    assert min(stats.kstest(np.asarray(z[:600]), "norm").pvalue for z in out["z"].T) > 1e-3
    error = (out["x"] - out["mean"]).reshape(602, -1)
    scores = error.mean(0) / (error.std(0) / np.sqrt(602))
    assert np.abs(scores).max() < 4.5


def test_a_function_that_jax_cannot_compile_is_refused(dense: jaxvae.Trained) -> None:
    def hosts(params: Any, key: Any, x: Any) -> Any:
        return jax.pure_callback(np.sin, x, x)

    called = artefacts.Function(hosts, {"x": jax.ShapeDtypeStruct((2,), np.float32)})
    with pytest.raises(ValueError, match="JAX cannot compile the program: "):
        artefacts.exported(called, dense.params)


# The command


@pytest.fixture(scope="module")
def run(dense: jaxvae.Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with a checkpoint."""
    assert dense.workdir is not None
    folder = tmp_path_factory.mktemp("runs") / "run"
    shutil.copytree(dense.workdir, folder)
    shapes = dense.built.fresh_state(dense.data)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes._replace(key=None))
    state: training.State = zeros._replace(
        key=jax.random.key(0), params={"model": dense.params}, step=jnp.int32(7)
    )
    with checkpoints.Checkpoints(folder / "checkpoints") as held:
        held.save(7, state, {})
    return folder


def test_the_command_writes_what_every_command_opens(
    run: Path, dense: jaxvae.Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(run, tmp_path / "out", platforms=("cpu",))
    said = capsys.readouterr().out
    assert "step 7, 1,182 numbers" in said and "decode.stablehlo" in said
    check_same(dense, jaxvae.load(tmp_path / "out"))
    names = {file.name for file in (tmp_path / "out").iterdir()} - {"figures"}
    programs = {f"{name}.stablehlo" for name in ("encode", "decode", "sample")}
    assert names == programs | {"config.json", "model.safetensors", "README.md", "result.json"}
    export(tmp_path / "out", tmp_path / "again", programs=False)
    check_same(dense, jaxvae.load(tmp_path / "again"))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"checkpoint": "6"}, "has no checkpoint '6'; it has"),
    ({"scaling_factor": 0.5}, "--scaling-factor is of --format diffusers"),
    ({"dataset": "digits"}, "--dataset is of --format diffusers"),
    ({"format": "diffusers"}, "autoencoder-kl and vq-gan can be exported"),
    ({"push_to": "a/b/c"}, "'a/b/c' is no name on the hub, such as user/vae-digits"),
]


@pytest.mark.parametrize("row", range(len(REFUSED)))
def test_mistakes_are_refused_before_anything_is_written(
    row: int, run: Path, tmp_path: Path
) -> None:
    flags, words = REFUSED[row]
    with pytest.raises(ValueError, match=re.escape(words)):
        export(run, tmp_path / "out", **flags)
    assert not (tmp_path / "out").exists()


def test_inputs_are_listed_in_the_order_of_the_call(tmp_path: Path) -> None:
    model = model_of("cvae", tmp_path / "run", hidden=(8,), latent=3)
    functions = artefacts.functions(model)
    assert {name: list(each.inputs) for name, each in functions.items()} == {
        "encode": ["x", "condition"],
        "decode": ["z", "condition"],
        "sample": ["seed", "condition"],
    }
    program = artefacts.exported(functions["encode"], model.params, ("cpu",))
    about = artefacts.described(program, functions["encode"])
    assert list(about["inputs"].items()) == [("x", "uint8[b,8,8,1]"), ("condition", "int32[b]")]


@pytest.mark.slow
@pytest.mark.parametrize("preset", families.presets())
def test_every_preset_is_exported(preset: str, data_dir: Path, tmp_path: Path) -> None:
    """Opened again as it was, with programs that give what the methods give."""
    run = run_of(preset, data_dir)
    params = run.built.parameters(run.init_state())
    (tmp_path / "run").mkdir()
    folders.save(tmp_path / "run", run.record)
    record = run.record.of_raw()
    trained = of_run(record.build(), record.data, params, 0, tmp_path / "run", None)
    pretrained.save_pretrained(trained, tmp_path / "out", artefacts.of_model(trained))
    opened = pretrained.from_pretrained(tmp_path / "out")
    check_same(trained, opened)
    made = {each["file"]: each for each in config(tmp_path / "out")["artefacts"]}
    assert {"decode.stablehlo", "sample.stablehlo"} <= made.keys()
    for file, about in made.items():
        program = jax_export.deserialize(bytearray((tmp_path / "out" / file).read_bytes()))
        inputs = [drawn(each) for each in about["inputs"].values()]
        out = program.call(*inputs)
        assert all(len(leaf) == 2 for leaf in jax.tree.leaves(out))
        name = file.partition(".")[0]
        if name in ("encode", "classify"):
            expected = artefacts.plain(getattr(trained, name)(*inputs))
            same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
            jax.tree.map(same, out, expected)


def drawn(described: Any) -> Any:
    """Arrays of two rows of the types and shapes that config.json states."""
    if isinstance(described, dict):
        return {name: drawn(each) for name, each in described.items()}
    dtype, _, sizes = described.rstrip("]").partition("[")
    shape = [2 if size == "b" else int(size) for size in sizes.split(",")]
    return np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
