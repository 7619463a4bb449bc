"""Data sets: where they come from, how they are cut into splits and batches, what becomes of their
pixels.

No network, no TensorFlow, nothing written outside pytest's temporary folders. Oracles:
scikit-learn's digits, SciPy's statistics, NumPy, and tensorflow-datasets' own slices.
"""

import contextlib
import http.server
import io
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import types
from collections import Counter
from importlib.machinery import ModuleSpec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from jaxvae.datasets import (
    DataError,
    Dataset,
    Examples,
    Split,
    Stream,
    batch_rows,
    batches,
    catalog,
    held,
    load,
    num_examples,
    preprocessing,
    random_subset,
    rows_of,
    select,
    shapes,
    stream,
)
from jaxvae.datasets.files import read_image

ROOT = Path(__file__).resolve().parents[1]
RNG = np.random.default_rng(0)
LIMIT = 5.0  # the largest |z| allowed; keys are fixed, so what passes once passes always


def pixels(*shape, high=256):
    return RNG.integers(0, high, shape).astype(np.uint8)


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    file.seek(0)
    return file


def together(*splits):
    """The examples of some splits as a multiset of (pixels, label)."""
    return Counter(
        (image.tobytes(), None if split.y is None else int(split.y[i]))
        for split in splits
        for i, image in enumerate(split.x)
    )


def same(a, b):
    labels = a.y is b.y is None or np.array_equal(a.y, b.y)
    return labels and a.x.dtype == b.x.dtype and np.array_equal(a.x, b.x)


def same_sets(a, b):
    return a.splits.keys() == b.splits.keys() and all(
        same(a.splits[name], b.splits[name]) for name in a.splits
    )


# ------------------------------------------------------------------------------------------------
# no way to the world


@pytest.fixture(scope="module", autouse=True)
def no_network():
    """The probe meets a closed port of this machine; a call for any other machine is refused,
    and fails the module.
    """
    calls, connect = [], socket.socket.connect

    def guarded(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1"):
            calls.append(address)
            raise OSError(f"tests have no network: {address}")
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # held and never listening: refused at once
        patch.setenv("no_proxy", "*")
        patch.setattr(socket.socket, "connect", guarded)
        patch.setattr(catalog, "PROBE", f"http://127.0.0.1:{closed.getsockname()[1]}/")
        yield
    assert not calls


# ------------------------------------------------------------------------------------------------
# sets prepared by TFDS


def prepare(folder, name, features, splits, config=None):
    """Prepares a set of ``{split: [example]}`` below ``folder`` as array_record, without
    registering it.
    """
    import tensorflow_datasets as tfds

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []
        pkg_dir_path = Path(folder)

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(examples) for split, examples in splits.items()}

        def _generate_examples(self, examples):
            yield from enumerate(examples)

    Tiny.name = name
    builder = Tiny(data_dir=str(folder), file_format="array_record", config=config)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        builder.download_and_prepare()
    return builder


def examples(splits, image="image", label="label", write=lambda image: image):
    return {
        name: [{image: write(x), label: i % 3} for i, x in enumerate(images)]
        for name, images in splits.items()
    }


INSECTS = ["wasp", "ant", "bee"]
TINY = {"train": pixels(23, 4, 5, 1), "validation": pixels(5, 4, 5, 1), "test": pixels(7, 4, 5, 1)}
BINARY = {"train": pixels(6, 4, 5, 1, high=2), "test": pixels(3, 4, 5, 1, high=2)}
GRAY = {"train": pixels(6, 4, 5), "test": pixels(3, 4, 5)}
COLOUR = {"train": pixels(6, 4, 5, 3), "test": pixels(3, 4, 5, 3)}
VARY = {"train": [pixels(4, 4 + i, 3) for i in range(3)]}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A folder of small prepared sets."""
    from tensorflow_datasets import features as f

    folder = tmp_path_factory.mktemp("sets")
    tensor, three = f.Tensor(shape=(4, 5, 1), dtype=np.uint8), f.ClassLabel(names=INSECTS)
    box = {"x": f.Scalar(np.int64), "y": f.Scalar(np.int64), "note": f.Text()}
    boxed = lambda images: [{"image": png(x), "box": {"x": 1, "y": 2, "note": "a"}} for x in images]
    real = np.zeros((4, 5, 1), np.float32)
    prepare(folder, "tiny", {"image": tensor, "label": three}, examples(TINY))
    prepare(folder, "family", {"image": tensor, "label": three}, examples(TINY), config="member")
    prepare(folder, "single", {"image": tensor, "label": three}, examples({"train": TINY["train"]}))
    prepare(
        folder, "one", {"image": tensor, "label": three}, examples({"train": TINY["train"][:1]})
    )
    prepare(
        folder,
        "binary",
        {"image": tensor},
        {name: [{"image": x} for x in part] for name, part in BINARY.items()},
    )
    prepare(
        folder,
        "gray",
        {"image": f.Image(shape=(4, 5, 1)), "label": three},
        examples(GRAY, write=png),
    )
    prepare(
        folder,
        "colour",
        {"photo": f.Image(), "what": three},
        examples(COLOUR, "photo", "what", png),
    )
    prepare(
        folder,
        "boxed",
        {"image": f.Image(), "box": box},
        {name: boxed(part) for name, part in COLOUR.items()},
    )
    looks = f.FeaturesDict({"Smiling": f.Scalar(np.bool_), "Age": f.Scalar(np.float32)})
    faces = lambda images: [
        {"image": x, "attributes": {"Smiling": i == 1, "Age": i / 2}} for i, x in enumerate(images)
    ]
    prepare(
        folder, "faces", {"image": tensor, "attributes": looks}, {"train": faces(TINY["train"])}
    )
    prepare(folder, "vary", {"image": f.Image(), "label": three}, examples(VARY, write=png))
    prepare(
        folder,
        "sounds",
        {"audio": f.Tensor(shape=(9,), dtype=np.uint8)},
        {"train": [{"audio": pixels(9)}]},
    )
    prepare(
        folder,
        "depths",
        {"image": f.Tensor(shape=(4, 5, 1), dtype=np.float32)},
        {"train": [{"image": real}]},
    )
    return folder


def by_hand(splits, labels=True):
    label = lambda images: np.arange(len(images)) % 3 if labels else None
    return {name: Split(images, label(images)) for name, images in splits.items()}


@pytest.mark.parametrize(
    "name, expected, levels",
    [
        ("tiny", by_hand(TINY), 256),
        ("tiny:1.0.0", by_hand(TINY), 256),
        ("family/member", by_hand(TINY), 256),
        ("binary", by_hand(BINARY, labels=False), 2),
        ("gray", by_hand(GRAY), 256),  # decoded from PNG
        ("colour", by_hand(COLOUR), 256),
        ("boxed", by_hand(COLOUR, labels=False), 256),  # an image among nested features
    ],
)
def test_a_prepared_set_is_read_as_it_was_written(sets, name, expected, levels):
    dataset = load(name, sets)
    assert (
        dataset.name == name
        and dataset.levels == levels
        and dataset.splits.keys() == expected.keys()
    )
    labelled = expected["train"].y is not None
    assert dataset.classes == (tuple(INSECTS) if labelled else ())
    for part, split in dataset.splits.items():
        wanted = expected[part].x
        assert split.x.dtype == np.uint8 and split.x.shape == (*wanted.shape, 1)[:4]
        assert split.y is None or split.y.dtype == np.int32
        assert together(split) == together(expected[part])


def test_attributes_of_a_prepared_set_stay_with_their_images(sets):
    """As celeb_a has them: numbers by name, in the order of their names. The test split is held
    out of the others.
    """
    expected = {image.tobytes(): [i / 2, i == 1] for i, image in enumerate(TINY["train"])}
    found = load("faces", sets).splits
    assert len(found["train"].x) + len(found["test"].x) == len(expected)
    for split in found.values():
        assert split.y is None and split.attributes.dtype == np.float32
        assert split.attributes.tolist() == [expected[image.tobytes()] for image in split.x]


@pytest.mark.parametrize("chunk", [1, 2, 23, 100])
def test_the_size_of_the_chunks_that_are_read_does_not_matter(sets, chunk):
    import tensorflow_datasets as tfds

    source = tfds.core.read_only_builder.builder_from_files(
        "tiny", data_dir=str(sets)
    ).as_data_source("train")
    assert same(
        catalog.read_records(source, "image", "label", "tiny", chunk),
        load("tiny", sets).splits["train"],
    )


def test_tensorflow_datasets_own_folder_is_the_default(sets, monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(sets))
    assert same_sets(load("tiny"), load("tiny", sets))


@pytest.mark.parametrize("name", ["tiny", "family/member"])
def test_a_set_is_found_from_within_the_folder_that_holds_it(sets, monkeypatch, name):
    monkeypatch.chdir(sets)
    assert same_sets(load(name, "."), load(name, sets))


@pytest.fixture
def tiny_copy(sets, tmp_path):
    shutil.copytree(sets / "tiny", tmp_path / "tiny")
    return tmp_path / "tiny" / "1.0.0"


def test_a_set_in_a_format_for_tensorflow_says_how_to_convert_it(tiny_copy):
    info = tiny_copy / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(DataError, match="TensorFlow") as error:
        load("tiny", tiny_copy.parents[1])
    assert f"tfds convert_format --dataset_dir={tiny_copy} --out_file_format=array_record" in str(
        error.value
    )


def cut(file, keep):
    file.write_bytes(file.read_bytes()[:keep])


@pytest.mark.parametrize(
    "harm",
    {
        "no records": lambda folder: next(folder.glob("*train*")).unlink(),
        "half the records": lambda folder: cut(next(folder.glob("*train*")), 300),
        "half the info": lambda folder: cut(folder / "dataset_info.json", 100),
        "no info": lambda folder: (folder / "dataset_info.json").unlink(),
        "half the features": lambda folder: cut(folder / "features.json", 50),
        "no features": lambda folder: (folder / "features.json").unlink(),
    }.items(),
    ids=lambda item: item[0],
)
def test_a_damaged_set_is_a_data_error(tiny_copy, harm):
    harm[1](tiny_copy)
    with pytest.raises(DataError, match="tiny"):
        load("tiny", tiny_copy.parents[1])


# ------------------------------------------------------------------------------------------------
# sets that are not there


@pytest.mark.parametrize("name", ["mnist", "cmaterdb/bangla", "mnist:3.0.1", "fashion_mnist"])
def test_an_unprepared_set_without_network_answers_soon_with_the_command(tmp_path, name):
    start = time.monotonic()
    with pytest.raises(DataError, match="no network") as error:
        load(name, tmp_path)
    assert time.monotonic() - start < 10
    assert f"tfds build {name} --file_format=array_record --data_dir={tmp_path}`" in str(
        error.value
    )
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "there, command", [(True, "`tfds build"), (False, "`pip install tensorflow && tfds build")]
)
def test_the_command_installs_tensorflow_where_it_is_missing(tmp_path, monkeypatch, there, command):
    module = types.ModuleType("tensorflow")
    module.__spec__ = ModuleSpec("tensorflow", None)
    monkeypatch.setitem(sys.modules, "tensorflow", module if there else None)
    with pytest.raises(DataError) as error:
        load("mnist", tmp_path)
    assert command in str(error.value)


@pytest.mark.parametrize(
    "name, suggestion",
    [
        ("mnits", "mnist"),
        ("digit", "digits"),
        ("fashion_mnst", "fashion_mnist"),
        ("fashion-mnist", "fashion_mnist"),
        ("MNIST", "mnist"),
        ("mnits:3.0.1", "mnist"),
        ("cmaterdbb/bangla", "cmaterdb"),
    ],
)
def test_an_unknown_name_is_met_with_a_suggestion(tmp_path, name, suggestion):
    with pytest.raises(DataError, match="Did you mean") as error:
        load(name, tmp_path)
    assert suggestion in str(error.value).split("Did you mean")[1]


def raising(error):
    def builder(*args, **kwargs):
        raise error

    return builder


@pytest.mark.parametrize(
    "error, words",
    [
        (ModuleNotFoundError("no", name="apache_beam"), ["needs apache_beam", "--data-dir"]),
        (RuntimeError("checksum differs\nand more"), ["RuntimeError: checksum differs)"]),
        (AssertionError(), ["AssertionError"]),
    ],
)
def test_a_set_that_cannot_be_prepared_says_why_and_gives_the_command(
    tmp_path, monkeypatch, error, words
):
    import tensorflow_datasets as tfds

    monkeypatch.setattr(catalog, "_online", lambda: True)
    monkeypatch.setattr(tfds, "builder", raising(error))
    with pytest.raises(DataError) as caught:
        load("mnist", tmp_path)
    expected = [*words, f"tfds build mnist --file_format=array_record --data_dir={tmp_path}`"]
    assert all(word in str(caught.value) for word in expected)


def test_with_network_a_set_is_prepared_as_array_record(sets, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def builder(name, data_dir, file_format):
        assert (name, data_dir, file_format) == ("mnist", str(tmp_path), "array_record")
        tensor, three = (
            tfds.features.Tensor(shape=(4, 5, 1), dtype=np.uint8),
            tfds.features.ClassLabel(num_classes=3),
        )
        return prepare(tmp_path, "mnist", {"image": tensor, "label": three}, examples(TINY))

    monkeypatch.setattr(catalog, "_online", lambda: True)
    monkeypatch.setattr(tfds, "builder", builder)
    first = load("mnist", tmp_path)
    monkeypatch.setattr(tfds, "builder", raising(AssertionError("prepared twice")))
    assert same_sets(load("mnist", tmp_path), first)
    assert together(*first.splits.values()) == together(*load("tiny", sets).splits.values())


class Answer(http.server.BaseHTTPRequestHandler):
    """Says 404 to /404, and to /garbage something that is not HTTP."""

    def do_HEAD(self):
        self.wfile.write(
            b"HTTP/1.1 404 Not Found\r\n\r\n" if self.path == "/404" else b"garbage\r\n\r\n"
        )

    def log_message(self, *args):
        pass


@pytest.mark.filterwarnings("error")  # an exception that escapes the probe's thread is a warning
@pytest.mark.parametrize("path, online", [("/404", True), ("/garbage", False)])
def test_any_answer_of_the_host_counts_as_network(monkeypatch, path, online):
    server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    monkeypatch.setattr(catalog, "PROBE", f"http://127.0.0.1:{server.server_port}{path}")
    answer = catalog._online()
    thread.join()
    server.server_close()
    assert answer is online


def test_a_host_that_is_silent_counts_as_none(monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(catalog, "PROBE", f"http://127.0.0.1:{silent.getsockname()[1]}/")
        assert catalog._online(seconds=0.2) is False


# ------------------------------------------------------------------------------------------------
# digits


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "made" / "on the way"
    load("digits", folder)
    return folder


@pytest.fixture(scope="module")
def digits(digits_folder):
    return load("digits", digits_folder)


def test_digits_are_those_of_scikit_learn(digits):
    from sklearn.datasets import load_digits

    oracle = load_digits()
    assert together(*digits.splits.values()) == together(
        Split(oracle.images.astype(np.uint8), oracle.target)
    )


def test_digits_have_17_levels_and_two_splits(digits):
    assert digits.classes == tuple("0123456789")
    assert digits.levels == 17 and max(split.x.max() for split in digits.splits.values()) == 16
    shapes = {"train": (1437, 8, 8, 1), "test": (360, 8, 8, 1)}
    assert {name: split.x.shape for name, split in digits.splits.items()} == shapes


def test_each_split_of_the_digits_has_a_tenth_of_each_class(digits):
    for split in digits.splits.values():
        assert stats.chisquare(np.bincount(split.y, minlength=10)).pvalue > 1e-3


def test_digits_are_prepared_once_and_then_read_from_disk(digits_folder, digits, monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setattr(
        tfds.core.GeneratorBasedBuilder,
        "download_and_prepare",
        raising(AssertionError("prepared twice")),
    )
    assert same_sets(load("digits", digits_folder), digits)


def test_digits_are_the_same_in_every_folder_even_after_a_preparation_that_was_interrupted(
    digits, tmp_path
):
    (tmp_path / "digits" / "incomplete.ABCDEF_1.0.0").mkdir(parents=True)
    assert same_sets(load("digits", tmp_path), digits)


def test_digits_without_scikit_learn_name_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match="pip install scikit-learn"):
        load("digits", tmp_path)


def test_the_name_digits_tells_the_levels_of_that_set_only(tmp_path):
    np.save(tmp_path / "digits.npy", pixels(5, 8, 8))
    assert load(tmp_path / "digits.npy").levels == 256


# ------------------------------------------------------------------------------------------------
# what is and is not installed


def python(code, *args, path=()):
    """The output of Python on ``code`` in a process of its own."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, [ROOT, *path])),
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


WITHOUT = """
import sys
sets, data, *blocked = sys.argv[1:]
sys.modules.update(dict.fromkeys(blocked))
import jaxvae
for package in blocked:
    name, folder = ("digits", data) if package == "tensorflow_datasets" else ("gray", sets)
    try:
        jaxvae.datasets.load(name, folder)
    except jaxvae.datasets.DataError as error:
        print("said", " ".join(str(error).split()))
    del sys.modules[package]
"""
WITH_ALL = """
jaxvae.datasets.load("gray", sets), jaxvae.datasets.load("digits", data)
assert "tensorflow_datasets" in sys.modules and "tensorflow" not in sys.modules
"""


def test_without_its_packages_jaxvae_imports_and_load_names_them(sets, tmp_path):
    """TensorFlow is never imported, even where it is installed."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("")

    def said(code, *blocked):
        lines = python(code, sets, tmp_path / "data", *blocked, path=[tmp_path]).splitlines()
        return [line for line in lines if line.startswith("said")]

    one, two = said(WITHOUT + WITH_ALL, "tensorflow_datasets", "array_record")
    three = said(WITHOUT, "PIL", "cv2")[0]
    packages = {"tensorflow-datasets": one, "array_record": two, "pillow": three}
    assert all("pip install" in line and name in line for name, line in packages.items())


# ------------------------------------------------------------------------------------------------
# arrays, files

GREY = pixels(6, 4, 5)
LABELS = np.array([3, 1, 4, 1, 5, 9])


def whole(dataset):
    """The examples of a single-split set, put together again."""
    return together(*dataset.splits.values())


@pytest.mark.parametrize(
    "array, expected, levels",
    [
        (GREY, GREY[..., None], 256),
        (GREY[..., None], GREY[..., None], 256),
        (COLOUR["train"], COLOUR["train"], 256),
        (GREY.reshape(6, 20), GREY.reshape(6, 20), 256),
        (GREY.astype(np.int64), GREY[..., None], 256),
        (np.asfortranarray(GREY), GREY[..., None], 256),
        (GREY > 127, (GREY > 127).astype(np.uint8)[..., None], 2),
        (GREY % 2, (GREY % 2)[..., None], 2),
        (GREY % 3, (GREY % 3)[..., None], 256),
        (GREY * 0, GREY[..., None] * 0, 2),
        (GREY * 0 + 255, GREY[..., None] * 0 + 255, 256),
        (GREY / 255.0, (GREY / 255.0).astype(np.float32)[..., None], None),
        (GREY.astype(np.float32) - 100, GREY.astype(np.float32)[..., None] - 100, None),
        ((GREY > 127).astype(np.float16), (GREY > 127).astype(np.float32)[..., None], 2),
    ],
    ids=[
        "grey",
        "channel",
        "colour",
        "vectors",
        "int64",
        "fortran",
        "bool",
        "binary",
        "ternary",
        "black",
        "white",
        "unit",
        "real",
        "half",
    ],
)
@pytest.mark.parametrize("source", ["array", "jax", "npy", "npz"])
def test_arrays_come_as_uint8_or_float32_with_channels_last(
    tmp_path, source, array, expected, levels
):
    if source == "npy":
        np.save(tmp_path / "x.npy", array)
    if source == "npz":
        np.savez_compressed(tmp_path / "x.npz", images=array)
    if source == "jax":
        array = jnp.asarray(array)
    dataset = load(array if source in ("array", "jax") else tmp_path / f"x.{source}")
    assert dataset.levels == levels and dataset.name == (
        "x" if source in ("npy", "npz") else "arrays"
    )
    assert all(split.x.dtype == expected.dtype for split in dataset.splits.values())
    assert all(split.x.shape[1:] == expected.shape[1:] for split in dataset.splits.values())
    assert whole(dataset) == together(Split(expected))


@pytest.mark.parametrize(
    "splits, given, levels",
    [
        ({"train": GREY * 0, "test": GREY * 0 + 1}, 17, 17),
        ({"train": GREY * 0, "test": GREY * 0 + 2}, None, 256),
        ({"train": GREY / 255, "test": GREY / 255}, 256, 256),
        ({"train": GREY % 2 / 1, "test": GREY / 255}, None, None),
        ({"train": {"a": GREY}, "test": {"a": GREY}}, None, None),
        ({"train": Split(GREY.astype(int) * 9), "test": Split(GREY.astype(int))}, None, None),
    ],
    ids=["given", "of all splits", "given for the unit interval", "real", "tree", "tokens"],
)
def test_levels_are_given_or_those_of_all_splits(splits, given, levels):
    assert load(splits, levels=given).levels == levels


TREE = {"sound": RNG.normal(size=(6, 30)), "text": RNG.integers(0, 9999, (6, 7))}


@pytest.mark.parametrize(
    "value, expected",
    [
        ((GREY, LABELS), Split(GREY[..., None], LABELS)),
        (GREY[:2], Split(GREY[:2, ..., None])),
        (Split(GREY, LABELS), Split(GREY, LABELS)),
        (TREE, Split(TREE)),
        ((TREE, LABELS), Split(TREE, LABELS)),
        (Split(TREE, {"a": LABELS}), Split(TREE, {"a": LABELS})),
        ((GREY, GREY), Split(GREY[..., None], GREY)),
    ],
    ids=["labels", "images", "as it is", "tree", "tree and labels", "tree of labels", "masks"],
)
def test_splits_hold_what_a_mapping_gives(value, expected):
    """Images are checked and get their channel; a Split and a dict of arrays are taken as is."""
    dataset = load({"train": value, "test": value})
    for split in dataset.splits.values():
        jax.tree.map(np.testing.assert_array_equal, split, expected)
    part = select(dataset, "train[:2]")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:2]), part, expected)


MISSING = [
    ([3, 1, -1], [3, 1, -1], ()),
    (np.array([3, 1, 0], np.uint8), [3, 1, 0], ()),
    ([3.0, np.nan, 1.0], [3, -1, 1], ()),
    ([3, None, 1], [3, -1, 1], ()),
    ([None, None, None], [-1, -1, -1], ()),
    ([True, False, True], [1, 0, 1], ()),
    (["dog", "cat", "dog"], [1, 0, 1], ("cat", "dog")),
    (["dog", None, "cat"], [1, -1, 0], ("cat", "dog")),
    (np.array(["dog", np.nan, "cat"], object), [1, -1, 0], ("cat", "dog")),
    (np.array([b"dog", b"cat", b"dog"]), [1, 0, 1], ("cat", "dog")),
]


@pytest.mark.parametrize("labels, expected, classes", MISSING, ids=str)
@pytest.mark.parametrize("wrap", [lambda x, y: (x, y), Split], ids=["images", "split"])
def test_labels_are_integers_and_minus_one_where_they_are_missing(wrap, labels, expected, classes):
    dataset = load({"train": wrap(GREY[:3], labels), "test": wrap(GREY[:3], [None] * 3)})
    assert dataset.splits["train"].y.dtype == np.int32 and dataset.classes == classes
    assert dataset.splits["train"].y.tolist() == expected
    assert dataset.splits["test"].y.tolist() == [-1] * 3


def test_a_set_is_independent_of_the_array_it_came_from():
    mine = GREY.copy()
    dataset = load({"train": mine, "test": mine})
    mine[:] = 0
    assert together(dataset.splits["train"]) == together(Split(GREY))


KERAS = {"x_train": GREY, "y_train": LABELS, "x_test": GREY[:2], "y_test": LABELS[:2]}
COLUMN = {"x_train": GREY, "y_train": LABELS[:, None], "x_test": GREY[:2]}
PLAIN = {"train": GREY, "train_labels": LABELS, "validation": GREY[:2], "test": GREY[:2]}
IMAGES = {
    "train_images": GREY,
    "train_labels": LABELS,
    "test_images": GREY[:2],
    "test_labels": LABELS[:2],
}


@pytest.mark.parametrize(
    "arrays, others",
    [
        (KERAS, {"test": LABELS[:2]}),
        (COLUMN, {"test": None}),
        (PLAIN, {"validation": None, "test": None}),
        (IMAGES, {"test": LABELS[:2]}),
    ],
    ids=["keras", "column", "plain", "images"],
)
def test_npz_files_with_splits(tmp_path, arrays, others):
    np.savez(tmp_path / "x.npz", **arrays)
    expected = {name: Split(GREY[:2, ..., None], labels) for name, labels in others.items()}
    assert same_sets(
        load(tmp_path / "x.npz"),
        Dataset("x", {"train": Split(GREY[..., None], LABELS), **expected}),
    )


@pytest.mark.parametrize(
    "images, labels", [("images", "labels"), ("x", "y"), ("train", "train_labels")]
)
def test_npz_files_of_one_split_with_labels(tmp_path, images, labels):
    np.savez(tmp_path / "bare.npz", GREY)
    assert whole(load(tmp_path / "bare.npz")) == together(Split(GREY))
    np.savez(tmp_path / "x.npz", **{images: GREY, labels: LABELS})
    dataset = load(tmp_path / "x.npz")
    assert dataset.splits.keys() == {"train", "test"} and whole(dataset) == together(
        Split(GREY, LABELS)
    )


NAMES = np.array(["cat", "dog", "eel"])


@pytest.mark.parametrize(
    "train, test, expected",
    [(NAMES, NAMES[::-1], [2, 1, 0]), (NAMES, NAMES[1:], [1, 2]), (NAMES[1:], NAMES, [0, 1, 2])],
    ids=["same classes", "fewer to test on", "more to test on"],
)
def test_labels_that_are_words_mean_the_same_class_in_every_split(train, test, expected):
    dataset = load({"train": (GREY[: len(train)], train), "test": (GREY[: len(test)], test)})
    assert dataset.classes == tuple(NAMES) and dataset.splits["test"].y.tolist() == expected
    assert dataset.splits["train"].y.tolist() == [NAMES.tolist().index(name) for name in train]


@pytest.mark.parametrize("kind", ["arrays", "npz"])
def test_several_numbers_for_each_image_are_attributes(tmp_path, kind):
    numbers = RNG.normal(size=(6, 3))
    np.savez(tmp_path / "x.npz", x_train=GREY, y_train=numbers, x_test=GREY[:2], y_test=LABELS[:2])
    arrays = {"train": (GREY, numbers), "test": (GREY[:2], LABELS[:2])}
    found = load(arrays if kind == "arrays" else tmp_path / "x.npz").splits
    np.testing.assert_array_equal(found["train"].attributes, numbers.astype(np.float32))
    assert found["train"].y is None and found["test"].attributes is None
    both = load({"train": (GREY, LABELS, numbers[:, :1])}).splits
    for split in both.values():
        at = [np.flatnonzero((GREY[..., None] == image).all((1, 2, 3)))[0] for image in split.x]
        assert np.array_equal(split.y, LABELS[at]) and np.allclose(
            split.attributes, numbers[at, :1]
        )
    np.testing.assert_array_equal(
        found["train"].take(slice(2, 4)).attributes, numbers[2:4].astype(np.float32)
    )


def written(write):
    file = io.BytesIO()
    write(file)
    return file.getvalue()


NPY = written(lambda file: np.save(file, GREY))
NPZ = written(lambda file: np.savez_compressed(file, images=pixels(40, 9, 9)))
OBJECTS = np.array([GREY, None], dtype=object)


def test_a_pickle_is_never_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    np.save(tmp_path / "x.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(DataError):
        load(tmp_path / "x.npy")
    assert not (tmp_path / "sprung").exists()


def test_the_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save(tmp_path / "x.npy", GREY)
    assert whole(load("~/x.npy")) == together(Split(GREY))


# ------------------------------------------------------------------------------------------------
# folders


def folder_of(root, files):
    """Writes ``{path: pixels}`` as images below ``root``."""
    for path, image in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(root / path)
    return root


def test_a_flat_folder_of_images(tmp_path):
    suffixes = ["png", "PNG", "bmp", "BMP", "tif", "tiff"]
    folder_of(tmp_path, {f"{i}.{suffix}": GREY[i] for i, suffix in enumerate(suffixes)})
    (tmp_path / "notes.txt").write_text("not an image")
    assert whole(load(tmp_path)) == together(Split(GREY))
    folder_of(tmp_path / "all", {f"{i}.png": image for i, image in enumerate(GREY)})
    assert whole(load(tmp_path / "all")) == together(Split(GREY))  # one sub-folder is no class


def test_hidden_files_and_folders_are_left_out(tmp_path):
    """Those that systems leave beside photographs; the folder itself may be hidden."""
    root = folder_of(tmp_path / ".mine", {f"{i}.png": image for i, image in enumerate(GREY)})
    folder_of(root, {".thumbs/0.png": GREY[0], "a/.b/c/0.png": RGB, "a/._1.png": GREY[0]})
    (root / "._0.png").write_bytes(b"no image")
    assert whole(load(root)) == together(Split(GREY))
    assert sum(len(split) for split in stream(root).splits.values()) == len(GREY)


@pytest.mark.parametrize(
    "write", [lambda folder: folder.name, lambda folder: f"./{folder.name}", Path, str]
)
def test_a_folder_is_found_however_it_is_written(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    dataset = load(
        write(folder_of(tmp_path / "photos", {f"{i}.png": x for i, x in enumerate(GREY)}))
    )
    assert dataset.name == "photos" and whole(dataset) == together(Split(GREY))


def test_images_in_sub_folders_have_these_as_labels(tmp_path):
    folder_of(tmp_path, {f"{NAMES[i % 3]}/{i}.png": x for i, x in enumerate(COLOUR["train"])})
    assert whole(load(tmp_path)) == together(Split(COLOUR["train"], np.arange(6) % 3))
    folder_of(tmp_path, {"above.png": COLOUR["test"][0]})
    dataset = load(tmp_path)
    images = np.concatenate([COLOUR["train"], COLOUR["test"][:1]])
    assert whole(dataset) == together(Split(images, [0, 1, 2, 0, 1, 2, -1]))
    assert dataset.classes == tuple(NAMES)


@pytest.mark.parametrize("parts", [("train", "test"), ("train", "validation", "test")])
@pytest.mark.parametrize("classes", [False, True])
def test_a_folder_with_a_sub_folder_per_split(tmp_path, parts, classes):
    labels = np.arange(6) % 3
    place = lambda i: f"{NAMES[labels[i]]}/{i}.png" if classes else f"{i}.png"
    folder_of(tmp_path, {f"{part}/{place(i)}": x for part in parts for i, x in enumerate(GREY)})
    dataset = load(tmp_path)
    assert dataset.splits.keys() == set(parts)
    assert dataset.classes == (tuple(NAMES) if classes else ())
    assert all(
        together(split) == together(Split(GREY, labels if classes else None))
        for split in dataset.splits.values()
    )


@pytest.mark.parametrize("test_classes", [[1, 2], [2]], ids=["two of three", "one of three"])
def test_sub_folders_mean_the_same_class_in_every_split(tmp_path, test_classes):
    classes = {"train": [0, 1, 2], "test": test_classes}
    folder_of(
        tmp_path, {f"{part}/{NAMES[c]}/0.png": GREY[c] for part in classes for c in classes[part]}
    )
    assert {part: split.y.tolist() for part, split in load(tmp_path).splits.items()} == classes


def test_a_folder_with_a_train_folder_only_holds_out_some(tmp_path):
    folder_of(tmp_path, {f"train/{i}.png": x for i, x in enumerate(GREY)})
    dataset = load(tmp_path)
    assert dataset.splits.keys() == {"train", "test"} and whole(dataset) == together(Split(GREY))


RGB = COLOUR["train"][0]
PALETTE = Image.fromarray(RGB).quantize(20)


@pytest.mark.parametrize(
    "image, expected",
    [
        (Image.fromarray(GREY[0]), GREY[0][..., None]),
        (Image.fromarray(GREY[0] > 127), ((GREY[0] > 127) * np.uint8(255))[..., None]),
        (Image.merge("LA", [Image.fromarray(GREY[0])] * 2), GREY[0][..., None]),
        (Image.fromarray(RGB), RGB),
        (Image.fromarray(np.dstack([RGB, GREY[0]])), RGB),
        (PALETTE, np.asarray(PALETTE.convert("RGB"))),
    ],
    ids=["grey", "one bit", "grey with alpha", "colour", "colour with alpha", "palette"],
)
def test_images_of_every_mode_are_grey_or_colour(tmp_path, image, expected):
    assert np.array_equal(
        load(folder_of(tmp_path, {"0.png": image})).splits["train"].x, expected[None]
    )


def test_transparent_palettes_and_turned_photographs(tmp_path):
    """Transparency by colour is dropped, and the camera's note of its orientation is followed."""
    image, turned = PALETTE.copy(), Image.Exif()
    image.info["transparency"] = bytes(range(20))
    turned[0x0112] = 6  # to be turned by a quarter, clockwise
    Image.fromarray(RGB).save(tmp_path / "1.png", exif=turned)
    image.save(tmp_path / "0.png")
    assert np.array_equal(read_image(tmp_path / "0.png"), np.asarray(PALETTE.convert("RGB")))
    assert np.array_equal(read_image(tmp_path / "1.png"), np.rot90(RGB, -1))


def blocks(image, down, right):
    """The mean of blocks of pixels."""
    h, w = image.shape[0] // down, image.shape[1] // right
    return image.reshape(h, down, w, right, -1).mean((1, 3))


PHOTO = pixels(24, 40, 3)


@pytest.mark.parametrize(
    "size, expected",
    [
        (24, PHOTO[:, 8:32]),
        (6, blocks(PHOTO[:, 8:32], 4, 4)),
        ((12, 20), blocks(PHOTO, 2, 2)),
        ((3, 5), blocks(PHOTO, 8, 8)),
        ((6, 10), blocks(PHOTO, 4, 4)),
        ((2, 10), blocks(PHOTO[8:16], 4, 4)),
        (48, PHOTO[:, 8:32].repeat(2, 0).repeat(2, 1)),
    ],
    ids=["crop", "both", "half", "eighth", "quarter", "low", "double"],
)
def test_images_are_scaled_to_the_shorter_side_and_cropped_in_the_centre(tmp_path, size, expected):
    """By the mean of the pixels that a new one covers; Pillow rounds after each direction."""
    folder_of(tmp_path, {"0.png": PHOTO})
    held, streamed = (make(tmp_path, image_size=size).splits["train"] for make in (load, stream))
    for image in (held.x[0], streamed[0]):
        assert image.shape == expected.shape and np.abs(image - expected).max() <= 1


def test_files_that_cannot_be_read_are_skipped_where_that_is_asked_for(tmp_path):
    folder_of(tmp_path, {f"{i}.png": image for i, image in enumerate(GREY)})
    (tmp_path / "2a.png").write_bytes(png(GREY[0]).getvalue()[:60])
    (tmp_path / "3a.jpg").write_bytes(JPEG[:300])
    words = r"2 of 8 image files are skipped; the first: .*2a\.png cannot be read"
    with pytest.warns(UserWarning, match=words):
        assert whole(load(tmp_path, unreadable="skip")) == together(Split(GREY))
    with pytest.warns(UserWarning, match=words):
        splits = stream(tmp_path, unreadable="skip").splits.values()
    assert together(*(Split(split[:]) for split in splits)) == together(Split(GREY))


DEEP = np.arange(16).reshape(4, 4) * 4096
DEEP_IMAGES = {
    "16 bits": DEEP.astype(np.uint16),
    "32 bits": DEEP.astype(np.int32),
    "float": np.float32(DEEP / 65535),
}


@pytest.mark.parametrize("image", DEEP_IMAGES.values(), ids=DEEP_IMAGES)
def test_images_of_more_than_8_bits_are_brought_to_8_or_refused_but_never_clipped(tmp_path, image):
    folder_of(tmp_path, {"0.tif": image})
    try:
        read = load(tmp_path).splits["train"].x[0]
    except DataError:
        return
    assert np.allclose(read[..., 0], DEEP / 257, atol=1.01)


JPEG = written(lambda file: Image.fromarray(pixels(16, 16)).save(file, "JPEG"))


# ------------------------------------------------------------------------------------------------
# splits


@pytest.mark.parametrize(
    "spec",
    [
        "train",
        "train[:10]",
        "train[5:10]",
        "train[80%:]",
        "train[-5:]",
        "train[:-3]",
        "train[10%:50%]",
    ]
    + [
        "train[33%:66%]",
        "train[-30%:]",
        "train[:-20%]",
        "train[20:]",
        "validation",
        "validation[1:]",
        "test[:50%]",
    ],
)
def test_parts_of_a_split_are_those_of_tensorflow_datasets(sets, spec):
    import tensorflow_datasets as tfds

    builder = tfds.core.read_only_builder.builder_from_files("tiny", data_dir=str(sets))
    oracle = list(builder.as_data_source(spec))
    part = select(load("tiny", sets), spec)
    assert same(
        part, Split(np.stack([e["image"] for e in oracle]), np.array([e["label"] for e in oracle]))
    )


COUNT = np.arange(20, dtype=np.uint8)
TWENTY = Dataset("twenty", {"train": Split(COUNT.reshape(20, 1, 1, 1), COUNT), "test": Split(GREY)})


@pytest.mark.parametrize(
    "spec, rows",
    [
        ("train[:10]", range(10)),
        ("train[80%:]", range(16, 20)),
        ("train[-5:]", range(15, 20)),
        ("train[3:4]", [3]),
        ("train[:]", range(20)),
        ("train[:1000]", range(20)),
    ],
)
def test_a_part_has_its_own_examples_and_labels(spec, rows):
    part = select(TWENTY, spec)
    assert part.x.ravel().tolist() == part.y.tolist() == list(rows)


def lengths(dataset):
    return {name: len(split.x) for name, split in dataset.splits.items()}


@pytest.mark.parametrize("n, held_out", [(2, 1), (5, 1), (10, 1), (19, 1), (20, 2), (200, 20)])
@pytest.mark.parametrize("name", ["train", "all"])
def test_a_set_of_one_split_holds_out_a_tenth(n, held_out, name):
    images, labels = np.arange(n, dtype=np.uint8).reshape(n, 1, 1), np.arange(n) + 1000
    dataset = load({name: (images, labels)})
    assert lengths(dataset) == {"train": n - held_out, "test": held_out}
    assert whole(dataset) == together(Split(images, labels))
    assert same_sets(load({name: (images, labels)}), dataset)


def test_what_is_held_out_is_spread_over_the_set():
    rows = load(np.arange(2000.0).reshape(-1, 1)).splits["test"].x.ravel()
    assert stats.kstest(rows / 2000, "uniform").pvalue > 1e-3


def test_a_prepared_set_of_one_split_holds_out_a_tenth(sets):
    dataset = load("single", sets)
    assert lengths(dataset) == {"train": 21, "test": 2}
    assert whole(dataset) == together(Split(TINY["train"], np.arange(23) % 3))


@pytest.mark.parametrize("source", ["array", "prepared"])
def test_a_set_of_one_example_is_trained_and_tested_on_it(sets, source):
    dataset = (
        load("one", sets) if source == "prepared" else load({"train": (TINY["train"][:1], [0])})
    )
    assert dataset.splits.keys() == {"train", "test"}
    assert all(
        same(split, Split(TINY["train"][:1], np.zeros(1))) for split in dataset.splits.values()
    )


# ------------------------------------------------------------------------------------------------
# random subsets

SORTED = np.repeat(np.arange(10), 40)  # as a folder by class is
TABLE = {
    "array": SORTED,
    "split": Split(SORTED[:, None], SORTED, preprocess=preprocessing("none", None)),
    "stream": stream(SORTED[:, None]).splits["train"].take(slice(0, 360)),
    "examples": Examples({"a": SORTED}, preprocessing("none", None)),
    "rendered": shapes.images()[:400],
}


@pytest.mark.parametrize("examples", TABLE.values(), ids=TABLE)
def test_a_subset_is_some_rows_in_order_whatever_holds_them(examples):
    n = num_examples(examples)
    rows = random_subset(np.arange(n), 50)
    assert len(rows) == 50 and (np.diff(rows) > 0).all() and rows[0] >= 0 and rows[-1] < n
    part = random_subset(examples, 50)
    expected = examples.take(rows) if isinstance(examples, Stream) else rows_of(examples, rows)
    pixels_of = lambda part: part[:] if isinstance(part, Stream) else part
    jax.tree.map(np.testing.assert_array_equal, *map(pixels_of, (part, expected)))
    assert type(part) is type(examples) and num_examples(part) == 50
    assert random_subset(examples, None) is random_subset(examples, n) is examples
    if isinstance(examples, (Split, Stream)):
        within = held(examples, 50)
        assert isinstance(within, Split) and within.preprocess is examples.preprocess
        x = part[:] if isinstance(part, Stream) else part.x
        assert isinstance(within.x, np.ndarray) and np.array_equal(within.x, x)


def test_every_example_is_as_likely_in_a_subset():
    """Also each class of a set that is sorted by class, which the first examples are not."""
    counts = sum(
        np.bincount(random_subset(np.arange(400), 100, seed), minlength=400) for seed in range(400)
    )
    z = (counts - 100) / np.sqrt(400 * 0.25 * 0.75)
    assert np.abs(z).max() < LIMIT and stats.kstest(z, "norm").pvalue > 1e-3
    classes = np.bincount(random_subset(SORTED, 100), minlength=10)
    assert stats.chisquare(classes).pvalue > 1e-3 and (SORTED[:100] < 3).all()


def test_a_subset_is_not_the_beginning_of_an_epoch():
    rows = {tuple(np.sort(batch_rows(0, epoch * 4, 400, 100)[0])) for epoch in range(20)}
    assert tuple(random_subset(np.arange(400), 100)) not in rows


# ------------------------------------------------------------------------------------------------
# batches

SIZES = [(10, 4), (3, 8), (1, 1), (8, 4), (7, 1), (5, 5), (1, 4), (64, 16)]


def epoch_of(seed, epoch, n, size, **options):
    """Rows and masks of all batches of an epoch, [steps, B] each."""
    steps = -(-n // size)
    batches = [batch_rows(seed, epoch * steps + i, n, size, **options) for i in range(steps)]
    return tuple(np.stack(part) for part in zip(*batches, strict=True))


@pytest.mark.parametrize("n, size", SIZES)
def test_every_epoch_is_a_permutation_of_all_examples(n, size):
    for epoch in range(4):
        rows, mask = epoch_of(3, epoch, n, size)
        assert rows.shape == mask.shape == (-(-n // size), size)
        assert sorted(rows[mask == 1]) == list(range(n))


@pytest.mark.parametrize("n, size", SIZES)
def test_only_the_last_batch_of_an_epoch_is_ragged_and_only_at_its_end(n, size):
    rows, mask = epoch_of(3, 1, n, size)
    assert np.array_equal(mask.ravel(), np.arange(mask.size) < n)
    assert (rows[mask == 0] == 0).all()


@pytest.mark.parametrize("n, size", SIZES)
def test_padding_adds_masked_rows_only(n, size):
    rows, mask = epoch_of(3, 1, n, size, padded=size + 3)
    plain_rows, plain_mask = epoch_of(3, 1, n, size)
    assert np.array_equal(rows[:, :size], plain_rows) and np.array_equal(mask[:, :size], plain_mask)
    assert (
        rows.shape == mask.shape == (len(plain_rows), size + 3)
        and not rows[:, size:].any()
        and not mask[:, size:].any()
    )


def test_a_batch_depends_on_seed_and_step_only_however_it_is_asked_for():
    ask = lambda seed, step: np.stack(batch_rows(seed, step, 10, 4)).tolist()
    places = [(seed, step) for seed in range(3) for step in range(9)]
    in_order = {place: ask(*place) for place in places}
    for some in (places[::-1], RNG.permutation(places).tolist(), places[13:]):
        batches._order.cache_clear()
        assert all(ask(*place) == in_order[tuple(place)] for place in some)


def test_a_batch_that_is_written_into_does_not_change_the_next():
    first = batch_rows(0, 0, 6, 6)[0]
    kept = first.copy()
    first[:] = -1
    assert np.array_equal(batch_rows(0, 0, 6, 6)[0], kept)


@pytest.mark.parametrize("by", ["epoch", "seed"])
def test_epochs_and_seeds_have_orders_of_their_own(by):
    orders = [
        epoch_of(*((0, i) if by == "epoch" else (i, 0)), 50, 50)[0].ravel() for i in range(20)
    ]
    assert len({tuple(order) for order in orders}) == 20
    fixed = [
        (a == b).sum() for i, a in enumerate(orders) for b in orders[:i]
    ]  # Poisson(1) where they are independent
    assert abs(np.mean(fixed) - 1) * np.sqrt(len(fixed)) < LIMIT


def test_all_orders_of_an_epoch_are_equally_likely():
    seen = Counter(tuple(epoch_of(0, epoch, 4, 4)[0].ravel().tolist()) for epoch in range(4800))
    assert len(seen) == 24 and stats.chisquare(list(seen.values())).pvalue > 1e-3


@pytest.mark.parametrize(
    "tree, n",
    [
        (GREY, 6),
        (Split(GREY, LABELS), 6),
        (Split(GREY), 6),
        ({"x": jnp.zeros((3, 2)), "y": [np.zeros(3)]}, 3),
        (np.zeros(1), 1),
    ],
    ids=["array", "split", "split without labels", "tree", "one"],
)
def test_the_number_of_examples_is_the_leading_axis(tree, n):
    assert num_examples(tree) == n


# ------------------------------------------------------------------------------------------------
# refusals


def write(name, content=b""):
    """A file in the current folder: bytes, or an image."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        Path(name).write_bytes(content)
    else:
        Image.fromarray(content).save(name)


def from_file(name, content):
    """Loads a file, or the folder of an image, beside a good one."""

    def call(sets):
        write(name, content)
        if Path(name).parent != Path("."):
            write(f"{Path(name).parent}/0.png", GREY[0])
        load("./" + name.split("/")[0])

    return call


def saved(name, array):
    """Loads an array from a file."""

    def call(sets):
        np.save(name, array) if name.endswith("npy") else np.savez(name, x_train=array)
        load(name)

    return call


def of(source, **options):
    return lambda sets: load(source, **options)


def empty(sets):
    Path("empty/train/notes").mkdir(parents=True)
    load("./empty")


def nameless(name):
    """A name of nothing, in a folder that holds an image."""

    def call(sets):
        write("no_set_of_that_name.png", GREY[0])
        load(name, "sets")

    return call


HEAD = {"train": GREY, "test": GREY}
FIRST = np.zeros((6, 3, 8, 9), np.uint8)
BAD_ARRAYS = {  # what is no image, and the words
    "complex": (GREY * 1j, ["complex128"]),
    "words": (np.array([["a"]]), ["<U1"]),
    "dates": (np.zeros((2, 2), "datetime64[s]"), ["datetime64"]),
    "rank 0": (np.array(3), ["shape ()"]),
    "rank 1": (GREY[0, 0], ["shape (5,)"]),
    "rank 5": (GREY[None, None], ["shape (1, 1, 6, 4, 5)"]),
    "none": (GREY[:0], ["shape (0, 4, 5)"]),
    "no width": (GREY[:, :, :0], ["shape (6, 4, 0)"]),
    "negative": (GREY.astype(int) - 300, ["integers from -", "datasets.Split(x)"]),
    "too large": (GREY.astype(int) + 300, ["pixels are 0..255"]),
    "channels first": (FIRST, ["(6, 3, 8, 9), with channels first", "np.moveaxis(x, 1, -1)"]),
    "one channel first": (FIRST[:, :1] / 255, ["np.moveaxis(x, 1, -1)"]),
    "four channels first": (np.zeros((2, 4, 8, 9), np.uint8), ["np.moveaxis(x, 1, -1)"]),
}
BAD_FILES = {  # the content of a file that cannot be read, and its name
    "npy of nothing": ("x.npy", b""),
    "npy cut in its header": ("x.npy", NPY[:40]),
    "npy cut in its data": ("x.npy", NPY[:-5]),
    "npy of text": ("x.npy", b"1, 2, 3\n"),
    "npy of objects": ("x.npy", written(lambda file: np.save(file, OBJECTS))),
    "npy that is an npz": ("x.npy", NPZ),
    "npz of nothing": ("x.npz", b""),
    "npz of text": ("x.npz", b"1, 2, 3\n"),
    "npz cut": ("x.npz", NPZ[: len(NPZ) // 2]),
    "npz damaged": ("x.npz", NPZ[:300] + bytes(50) + NPZ[350:]),
    "npz that is an npy": ("x.npz", NPY),
    "npz of objects": ("x.npz", written(lambda file: np.savez(file, images=OBJECTS))),
    "npz of other things": ("x.npz", written(lambda file: np.savez(file, weights=GREY))),
    "npz of no array": ("x.npz", written(lambda file: np.savez(file))),
    "another kind": ("x.csv", b"1, 2, 3\n"),
    "png cut": ("photos/1.png", png(GREY[0]).getvalue()[:60]),
    "png of nothing": ("photos/1.png", b""),
    "jpg cut": ("photos/1.jpg", JPEG[:300]),
    "gif of text": ("photos/1.gif", b"hello"),
}
REFUSED = {  # what is asked, and words of the answer
    "no images": (lambda sets: load("sounds", sets), ["sounds", "no uint8 images", "audio"]),
    "images of floats": (lambda sets: load("depths", sets), ["depths", "no uint8 images"]),
    "set of many shapes": (
        lambda sets: load("vary", sets),
        ["vary", "differ in shape", "(4, 4, 3)", "(4, 5, 3)"],
    ),
    "digits that cannot be written": (
        lambda sets: (write("file"), load("digits", "file/sub")),
        ["may write", "file/sub"],
    ),
    "too few labels": (of({"train": (GREY, LABELS[:4])}), ["6 images but 4 labels"]),
    "no labels": (of({"train": GREY, "test": (GREY, LABELS[:0])}), ["6 images but 0 labels"]),
    "labels in a split": (of(Split(GREY, LABELS[:4])), ["the split", "lengths were [4, 6]"]),
    "labels in a tree": (of({"train": (TREE, LABELS[:4])}), ["'train'", "lengths were [4, 6]"]),
    "real labels": (of({"train": (GREY, LABELS / 2)}), ["labels such as [1.5, 0.5", "[N, A]"]),
    "labels below -1": (of({"train": (GREY, LABELS - 3)}), ["labels from -2 to 6", "-1 where"]),
    "labels too large": (of({"train": (GREY, LABELS * 10**9)}), ["labels from 1e+09 to 9e+09"]),
    "words and numbers": (
        of({"train": (GREY, list("abcabc")), "test": (GREY, LABELS)}),
        ["words in train but no words in test"],
    ),
    "npz labels": (
        lambda sets: (np.savez("x.npz", x_test=GREY, y_test=LABELS[:5]), load("x.npz")),
        ["x.npz[test] has 6 images but 5 labels"],
    ),
    "attributes": (of({"train": (GREY, np.ones((5, 2)))}), ["6 images but 5 rows of attributes"]),
    "attributes of words": (
        of({"train": (GREY, np.full((6, 2), "a"))}),
        ["attributes that are no numbers"],
    ),
    "attributes of NaN": (
        of({"train": (GREY, np.full((6, 2), np.nan))}),
        ["attributes that are not finite"],
    ),
    "splits of many shapes": (of({"train": GREY, "test": GREY[:, 1:]}), ["(4, 5, 1)", "(3, 5, 1)"]),
    "splits of many types": (of({"train": GREY, "test": GREY / 255}), ["uint8", "float32"]),
    "trees of many shapes": (
        of({"train": TREE, "test": TREE | {"text": GREY}}),
        ["one shape", "(4, 5)", "(7,)"],
    ),
    "images of many shapes": (of([GREY[0], GREY[1, 1:]]), ["differ in shape"]),
    "no splits": (of({}), ["at least one split"]),
    "no folder to resize": (of(HEAD, image_size=8), ["image_size is for folders", "these arrays"]),
    "no set to resize": (of("digits", image_size=8), ["image_size is for folders", "digits"]),
    "no size": (of("./empty", image_size=0), ["image_size must be at least 1; it was 0"]),
    "no choice": (of(HEAD, unreadable="fix"), ["stop, skip; it was 'fix'"]),
    "no path": (of("./nothing"), ["there is no nothing"]),
    "no npy": (of("nothing.npy"), ["there is no nothing.npy"]),
    "no npz": (of(Path("nothing.npz")), ["there is no nothing.npz"]),
    "no home": (of("~/nothing"), ["there is no /", "/nothing"]),
    "empty folder": (empty, ["empty/train holds no images"]),
    "sizes in a folder": (
        from_file("photos/1.png", GREY[0, 1:]),
        ["0.png is (4, 5), ", "1.png is (3, 5); image_size="],
    ),
    "colours in a folder": (
        from_file("photos/1.png", RGB),
        ["0.png is (4, 5), ", "1.png is (4, 5, 3); some are grey"],
    ),
    "nothing to skip to": (
        lambda sets: (write("bad/1.png"), load("./bad", unreadable="skip")),
        ["1 of 1 image files are skipped", "1.png"],
    ),
    "no subset": (lambda sets: random_subset(GREY, 0), ["at least one example", "asked for 0"]),
}
REFUSED |= {
    f"{kind} by {name}": (call(array), [*words, where])
    for kind, (array, words) in BAD_ARRAYS.items()
    for name, call, where in [
        ("array", of, "the array"),
        ("mapping", lambda array: of({"train": array}), "split 'train'"),
        ("npy", lambda array: saved("x.npy", array), "x.npy"),
        ("npz", lambda array: saved("x.npz", array), "x.npz[train]"),
    ]
    if name == "array" or kind in ("complex", "rank 0", "too large", "channels first")
}
REFUSED |= {
    kind: (from_file(name, content), [name, "photos/1" if "photos" in name else "x."])
    for kind, (name, content) in BAD_FILES.items()
}
REFUSED |= {
    f"name {name!r}": (nameless(name), ["data set"])
    for name in ["zzzzqqqq", "a b", "mnist[", "mnist/", "kaggle:zzzzqqqq", ""]
}
REFUSED |= {
    f"split {spec!r}": (
        lambda sets, spec=spec: select(TWENTY, spec),
        [repr(spec), "twenty", "train (20)", "test (6)"],
    )
    for spec in ["", "valid", "Train", "train[", "train[]", "train[3]", "train[:10", "train[a:]"]
    + ["train[::2]", "train[1.5:]", "train+test", " train", "train[:5]x", "train[:%]", "train[5:10"]
}
REFUSED |= {
    f"no example in {spec}": (
        lambda sets, spec=spec: select(TWENTY, spec),
        [repr(spec), "holds no example; train has 20"],
    )
    for spec in [
        "train[5:5]",
        "train[10:5]",
        "train[20:]",
        "train[:0]",
        "train[:1%]",
        "train[:-20]",
    ]
}
REFUSED |= {
    f"{kind} to count": (lambda sets, tree=tree: num_examples(tree), ["leading axis", words])
    for kind, tree, words in [
        ("lengths", {"x": np.zeros((3, 2)), "y": np.zeros(4)}, "[3, 4]"),
        ("no example", GREY[:0], "[0]"),
        ("no labels", Split(GREY, LABELS[:0]), "[0, 6]"),
        ("no arrays", {}, "[]"),
        ("nothing", None, "[]"),
        ("a scalar", {"x": np.zeros(3), "y": 1.0}, "[0, 3]"),
    ]
}


@pytest.mark.parametrize("call, words", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_used_is_refused_with_the_reason(sets, tmp_path, monkeypatch, call, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError) as error:
        call(sets)
    assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize(
    "shape", [(2, 3, 5, 3), (2, 3, 4, 4), (2, 1, 1, 64), (2, 3, 2, 8), (2, 1, 9, 4), (2, 8, 8, 12)]
)
def test_images_with_channels_last_are_never_taken_for_others(shape):
    assert (
        load({"train": np.zeros(shape), "test": np.zeros(shape)}).splits["test"].shape == shape[1:]
    )
