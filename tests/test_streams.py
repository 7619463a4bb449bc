"""Streams: every source gives the examples that it gives in memory, to whoever asks for them, at
any step.

The oracle is the same set in memory, indexed by NumPy.
"""

import gc
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter

import grain
import numpy as np
import pytest
from PIL import Image

from jaxvae.datasets import (
    PREPROCESSING,
    DataError,
    Examples,
    Stream,
    batch_rows,
    load,
    num_examples,
    prepared,
    select,
    stream,
)
from jaxvae.datasets.streams import AHEAD

RNG = np.random.default_rng(0)


def pixels(*shape, high=256):
    return RNG.integers(0, high, shape).astype(np.uint8)


COLOUR, GREY, BINARY = pixels(43, 4, 5, 3), pixels(23, 4, 5), pixels(21, 4, 5, 1, high=2)


class Records:
    """Random access to images, which counts what is read; a record in ``bad`` cannot be read."""

    def __init__(self, images, bad=()):
        self.images, self.bad, self.read = images, bad, Counter()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        self.read[row] += 1
        if row in self.bad:
            raise OSError(f"the disk\nfailed at {row}")
        return self.images[row]


class Together(Records):
    """Records that can be read in one go, as those of tensorflow-datasets."""

    def __getitems__(self, rows):
        self.together = rows
        if set(rows) & set(self.bad):
            raise OSError("some record failed")
        return [self.images[row] for row in rows]


def single(images, **options):
    """The stream of all records, without the held-out tenth, and the records."""
    records = Records(images, **options)
    return stream({"train": records, "test": images}, levels=256).splits["train"], records


# ------------------------------------------------------------------------------------------------
# the same as in memory


def png(folder, images, names="{:02}.png"):
    for i, image in enumerate(images):
        file = folder / names.format(i)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    return folder


def npy(folder, images):
    np.save(folder / "images.npy", images)
    return folder / "images.npy"


def parts(folder):
    png(folder / "train", COLOUR[:9]), png(folder / "test", COLOUR[9:12])
    return folder


same = lambda make: lambda folder: (make(folder),) * 2
SOURCES = {  # folder -> (what is streamed, what is loaded)
    "npy": same(lambda folder: npy(folder, COLOUR)),
    "npy, grey": same(lambda folder: npy(folder, GREY)),
    "npy, binary": same(lambda folder: npy(folder, BINARY)),
    "npy, integers": same(lambda folder: npy(folder, COLOUR.astype(np.int64))),
    "npy, booleans": same(lambda folder: npy(folder, BINARY == 1)),
    "npy, floats": same(lambda folder: npy(folder, GREY / 255)),
    "npy, vectors": same(lambda folder: npy(folder, RNG.normal(size=(30, 7)) * 9)),
    "folder": same(lambda folder: png(folder, COLOUR)),
    "folder, grey": same(lambda folder: png(folder, GREY)),
    "folder, classes": same(lambda folder: png(folder, COLOUR, "class{0}/{0}.png")),
    "folder, splits": same(parts),
    "array": same(lambda folder: COLOUR),
    "arrays": same(lambda folder: {"train": COLOUR, "validation": COLOUR[:3], "test": COLOUR[3:7]}),
    "list": same(lambda folder: list(GREY)),
    "one example": same(lambda folder: COLOUR[:1]),
    "object": lambda folder: (Records(COLOUR), COLOUR),
    "objects": lambda folder: (
        {"train": Records(GREY), "test": Together(GREY)},
        {"train": GREY, "test": GREY},
    ),
    "pipeline": lambda folder: (
        grain.MapDataset.source(GREY).map(lambda image: 255 - image)[::2],
        255 - GREY[::2],
    ),
}


@pytest.fixture(params=["digits", *SOURCES])
def sets(request, tmp_path, data_dir):
    """A set, streamed and in memory."""
    if request.param == "digits":
        return stream("digits", data_dir), load("digits", data_dir)
    streamed, held = SOURCES[request.param](tmp_path)
    return stream(streamed), load(held)


def test_a_streamed_set_holds_what_a_loaded_one_holds(sets):
    streamed, held = sets
    assert (streamed.name, streamed.levels, streamed.classes) == (held.name, held.levels, ())
    assert streamed.splits.keys() == held.splits.keys()
    for name, split in streamed.splits.items():
        images = held.splits[name].x
        assert isinstance(split, Stream) and len(split) == num_examples(split) == len(images)
        assert (
            split.shape == held.splits[name].shape == images.shape[1:]
            and split.dtype == images.dtype
        )
        assert split[:].dtype == images.dtype and np.array_equal(split[:], images)


def test_batches_are_the_rows_of_the_set_in_memory(sets):
    streamed, held = (dataset.splits["train"] for dataset in sets)
    n = len(streamed)
    rows_of = lambda step: batch_rows(3, step, n, 8, padded=12)[0]
    stop = min(2 * -(-n // 8), 40)
    batches = list(streamed.batches(rows_of, 0, stop))
    assert len(batches) == stop
    for step, batch in enumerate(batches):
        assert batch.dtype == streamed.dtype and np.array_equal(batch, held.x[rows_of(step)])


@pytest.mark.parametrize(
    "part", ["train", "test", "train[:80%]", "train[5:]", "train[-3:-1]", "train[50%:60%]"]
)
def test_parts_of_a_set_are_selected_as_in_memory(sets, part):
    if len(sets[1].splits["train"].x) < 20:
        part = part.split("[")[0]
    chosen, images = select(sets[0], part), select(sets[1], part).x
    assert isinstance(chosen, Stream) and np.array_equal(chosen[:], images)


@pytest.mark.parametrize(
    "rows",
    [
        0,
        -1,
        np.int32(7),
        slice(None),
        slice(3, 9, 2),
        slice(5, 5),
        slice(None, None, -1),
        [4, 0, 4, -2],
        np.arange(30) > 20,
    ],
    ids=str,
)
@pytest.mark.parametrize("view", [slice(None), np.arange(42, 2, -1)[:30]], ids=["whole", "view"])
def test_a_stream_is_indexed_as_an_array(rows, view):
    part = single(COLOUR)[0].take(view).take(slice(0, 30))
    expected = COLOUR[view][:30][rows]
    assert part[rows].shape == expected.shape and np.array_equal(part[rows], expected)


# ------------------------------------------------------------------------------------------------
# the state is the step


@pytest.mark.parametrize("start, stop", [(0, 14), (1, 14), (5, 9), (13, 14), (14, 14), (200, 203)])
def test_a_run_goes_on_at_any_step_and_reads_nothing_of_the_steps_before(start, stop):
    split, records = single(COLOUR)
    records.read.clear()
    rows_of = lambda step: batch_rows(0, step, len(COLOUR), 7)[0]
    batches = list(split.batches(rows_of, start, stop))
    assert len(batches) == stop - start
    assert all(
        np.array_equal(batch, COLOUR[rows_of(step)]) for step, batch in enumerate(batches, start)
    )
    assert records.read == Counter(
        row for step in range(start, stop) for row in set(rows_of(step).tolist())
    )


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_read_their_own_rows_and_have_the_batch_between_them(count):
    split, records = single(COLOUR)
    rows_of = lambda step: batch_rows(0, step, len(COLOUR), 8)[0]
    parts = []
    for i in range(count):
        own = lambda step, i=i: np.split(rows_of(step), count)[i]
        records.read.clear()
        parts.append(list(split.batches(own, 0, 12)))
        assert records.read == Counter(row for step in range(12) for row in set(own(step).tolist()))
    for step, batch in enumerate(zip(*parts, strict=True)):
        assert np.array_equal(np.concatenate(batch), COLOUR[rows_of(step)])


@pytest.mark.parametrize("kind", [Records, Together])
def test_a_row_that_pads_a_batch_is_read_once(kind):
    records = kind(COLOUR)
    split = stream({"train": records, "test": COLOUR}).splits["train"]
    records.read.clear()
    rows, mask = batch_rows(0, 5, 43, 8, padded=16)
    assert mask.sum() == 3 and np.array_equal(split[rows], COLOUR[rows])
    assert sorted(records.read if kind is Records else records.together) == sorted(
        set(rows.tolist())
    )


@pytest.mark.parametrize(
    "levels, most", [(256, 1), (None, 40)]
)  # the first one's shape, and a few for the levels
def test_opening_a_set_and_its_parts_reads_next_to_nothing(levels, most):
    records = Records(pixels(9000, 4, 5, 1))
    dataset = stream(records, levels=levels)
    assert (
        prepared(select(dataset, "train[10%:20%]"), "dynamic", 256) and records.read.total() <= most
    )


# ------------------------------------------------------------------------------------------------
# pixels


def spot(n, *places):
    """Black images but for a pixel of 255 in some."""
    images = np.zeros((n, 4, 5, 1), np.uint8)
    images[list(places), 0, 0] = 255
    return images


@pytest.mark.parametrize(
    "images, given, levels",
    [
        (BINARY, None, 2),
        (COLOUR, None, 256),
        (COLOUR, 300, 300),
        (BINARY, 256, 256),
        (GREY / 255, None, None),
        (GREY / 255, 256, 256),
        (spot(40, 17), None, 256),
        (
            spot(3000, *range(1500, 3000)),
            None,
            256,
        ),  # a thousand examples are looked at, all over the set
    ],
    ids=[
        "binary",
        "pixels",
        "given",
        "given binary",
        "unit interval",
        "given for the unit interval",
        "one in forty",
        "the second half",
    ],
)
def test_levels_are_inferred_or_given(images, given, levels):
    assert stream(images, levels=given).levels == levels


VALUES = {
    "pixels": (COLOUR, 256),
    "too many levels": (COLOUR, 17),
    "binary": (BINARY, 2),
    "unit interval": (GREY / 255, 256),
    "real": (GREY / 9 - 3, 256),
    "not finite": (np.where(GREY > 128, np.nan, 0.5), 256),
}


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("name", [name for name in PREPROCESSING if name != "static"])
def test_a_treatment_refuses_streamed_values_where_it_refuses_them_in_memory(name, values):
    images, levels = VALUES[values]

    def outcome(dataset):
        try:
            return prepared(dataset.splits["train"], name, levels).preprocess
        except DataError as error:
            return "".join(letter for letter in str(error) if letter.isalpha())

    assert outcome(stream(images)) == outcome(load(images))


def test_a_stream_carries_its_preprocessing():
    """The function that the set in memory carries, through all parts and to every block read."""
    streamed, held = (make(COLOUR, pixels="scale") for make in (stream, load))
    part = select(streamed, "train[10:20]").take(slice(2, 5))
    assert part.preprocess is held.splits["train"].preprocess is not None
    block = part.wrapped(part[:])
    assert isinstance(block, Examples) and block.preprocess is part.preprocess
    assert np.array_equal(block.raw, held.splits["train"].x[12:15])
    raw = part[:]
    assert single(COLOUR)[0].wrapped(raw) is raw


def test_a_stream_cannot_be_binarized_once_for_all():
    with pytest.raises(DataError, match=r"stream .*'dynamic', or hold the set in memory"):
        prepared(stream(COLOUR).splits["train"], "static", 256)


# ------------------------------------------------------------------------------------------------
# what cannot be streamed


def saved(name, write):
    def make(folder):
        with (folder / name).open("wb") as file:
            write(file)
        return folder / name

    return make


def cut(folder):
    file = npy(folder, COLOUR)
    file.write_bytes(file.read_bytes()[:500])
    return file


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda folder: folder / "none.npy", ["there is no", "none.npy"]),
        (
            saved("x.npz", lambda file: np.savez(file, x_train=COLOUR)),
            ["x.npz", "in parts", ".npy"],
        ),
        (
            saved("x.npy", lambda file: file.write(b"no numbers")),
            ["x.npy", "NumPy file of numbers"],
        ),
        (
            saved("x.npy", lambda file: np.save(file, np.array([{}]), allow_pickle=True)),
            ["x.npy", "of numbers"],
        ),
        (saved("x.npy", lambda file: np.save(file, np.float32(1))), ["x.npy", "of numbers"]),
        (saved("x.npy", lambda file: np.save(file, np.zeros(9))), ["x.npy", "[N, H, W, C]"]),
        (saved("x.npy", lambda file: np.save(file, COLOUR[:0])), ["x.npy", "0 examples"]),
        (
            saved("x.npy", lambda file: np.save(file, np.full((3, 2, 2), 300))),
            ["x.npy", "300", "0..255"],
        ),
        (
            saved("x.npy", lambda file: np.save(file, np.zeros((3, 2, 2), complex))),
            ["x.npy", "complex"],
        ),
        (cut, ["images.npy", "of numbers"]),
        (lambda folder: folder, ["holds no images"]),
        (
            lambda folder: (
                saved("deep.png", lambda file: Image.new("I;16", (4, 4)).save(file))(folder).parent
            ),
            ["deep.png"],
        ),
        (lambda folder: (image for image in COLOUR), ["generator", "__getitem__"]),
        (
            lambda folder: grain.MapDataset.source(COLOUR).to_iter_dataset(),
            ["IterDataset", "__getitem__"],
        ),
        (lambda folder: grain.MapDataset.source(COLOUR).repeat(), ["examples", "must not repeat"]),
        (lambda folder: {"train": (COLOUR, np.zeros(43))}, ["'train'", "no labels"]),
        (lambda folder: {"train": COLOUR, "test": []}, ["'test'", "0 examples"]),
        (lambda folder: {"train": COLOUR, "test": GREY}, ["one shape", "(4, 5, 1)", "(4, 5, 3)"]),
        (lambda folder: [{"image": image} for image in COLOUR], ["example 0", "object"]),
        (lambda folder: Records(COLOUR, bad=[0]), ["example 0", "OSError: the disk)"]),
        (lambda folder: {}, ["at least one split"]),
    ],
)
def test_what_cannot_be_streamed_is_met_at_the_door(tmp_path, make, words):
    with pytest.raises(DataError) as error:
        stream(make(tmp_path))
    assert all(word in str(error.value) for word in words)


def test_a_set_that_is_not_there_is_named():
    with pytest.raises(DataError, match="no data set 'zzzzqqqq'"):
        stream("zzzzqqqq")


def test_missing_grain_is_told_with_its_installation(monkeypatch):
    split = single(COLOUR)[0]
    monkeypatch.setitem(sys.modules, "grain", None)
    for ask in (lambda: stream(COLOUR), lambda: next(split.batches(lambda step: [0], 0, 1))):
        with pytest.raises(DataError, match=r"grain is missing: pip install 'jaxvae\[stream\]'"):
            ask()


# ------------------------------------------------------------------------------------------------
# failures mid-epoch


def with_row(row, value):
    images = list(COLOUR)
    images[row] = value
    return images


@pytest.mark.parametrize("kind", [Records, Together])
@pytest.mark.parametrize(
    "images, bad, words",
    [
        (COLOUR, [20], r"example 20 of split 'train' cannot be read \(OSError: the disk\)"),
        (
            with_row(20, COLOUR[0, :3]),
            [],
            r"example 20 of split 'train' is uint8 \(3, 5, 3\), the first .*\(4, 5, 3\)",
        ),
        (with_row(20, COLOUR[0] / 255), [], "example 20 of split 'train' is float32"),
        (
            with_row(20, COLOUR[0].astype(int) + 300),
            [],
            "example 20 of split 'train' holds integers .*0..255",
        ),
        (with_row(20, None), [], "example 20 of split 'train' holds object"),
    ],
    ids=["unreadable", "shape", "kind of number", "range", "nothing"],
)
def test_an_example_that_fails_is_named_after_all_batches_before_it(kind, images, bad, words):
    split = stream({"train": kind(images, bad), "test": COLOUR[:1]}, levels=256).splits["train"]
    rows_of = lambda step: np.arange(8 * step, 8 * step + 8)
    batches = split.batches(rows_of, 0, 5)
    assert all(np.array_equal(next(batches), COLOUR[rows_of(step)]) for step in (0, 1))
    with pytest.raises(DataError, match=words):
        next(batches)
    assert list(batches) == []


def test_a_row_of_a_view_is_named_as_the_record_that_it_is():
    split = single(COLOUR, bad=[20])[0].take(np.arange(43)[::-1])
    with pytest.raises(DataError, match="example 20 of split 'train'"):
        split[43 - 1 - 20]


def test_records_that_fail_together_are_read_alone():
    class Apart(Records):
        def __getitems__(self, rows):
            raise OSError("not together")

    assert np.array_equal(stream(Apart(COLOUR)).splits["train"][:], load(COLOUR).splits["train"].x)


@pytest.mark.parametrize(
    "harm, words",
    [
        (lambda file: file.write_bytes(b"no image"), "cannot be read"),
        (lambda file: Image.fromarray(GREY[0, :2]).save(file), "image_size="),
        (lambda file: Image.fromarray(COLOUR[0]).save(file), "some are grey"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, harm, words):
    harm(png(tmp_path, GREY) / "20.png")
    with pytest.raises(DataError, match=rf"20\.png .*{words}"):
        list(
            stream(tmp_path)
            .splits["train"]
            .batches(lambda step: np.arange(4 * step, 4 * step + 4), 0, 5)
        )


def test_a_damaged_record_of_a_prepared_set_is_named(data_dir, tmp_path):
    shutil.copytree(data_dir / "digits", tmp_path / "digits")
    (file,) = tmp_path.rglob("*train*")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    split = stream("digits", tmp_path).splits["train"]
    with pytest.raises(DataError, match=r"example \d+ of digits\[train\] cannot be read") as error:
        list(split.batches(lambda step: batch_rows(0, step, len(split), 100)[0], 0, 15))
    row = int(str(error.value).split()[1])
    with pytest.raises(DataError, match=f"example {row} of"):
        split[row]
    assert np.array_equal(split[:row], load("digits", data_dir).splits["train"].x[:row])


# ------------------------------------------------------------------------------------------------
# threads


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("grain-prefetch")]


def until(so, seconds=5.0):
    end = time.monotonic() + seconds
    while not so() and time.monotonic() < end:
        time.sleep(0.005)
    return so()


def drained(batches):
    for _ in batches:
        pass


def failed(batches):
    with pytest.raises(DataError):
        drained(batches)


ENDS = {
    "closed": lambda batches: batches.close(),
    "dropped": lambda batches: None,
    "drained": drained,
    "failed": failed,
}


@pytest.mark.parametrize("end", ENDS)
def test_readers_end_with_the_iterator(end):
    assert until(lambda: not readers())
    batches = single(COLOUR, bad=[42] if end == "failed" else ())[0].batches(
        lambda step: [step], 0, 43
    )
    assert not readers()
    next(batches)
    assert readers()
    ENDS[end](batches)
    del batches
    gc.collect()
    assert until(lambda: not readers())


def test_several_batches_are_read_at_once_and_no_more_than_it_says():
    asked, both = [], threading.Barrier(2)

    def rows_of(step):
        asked.append(step)
        if step < 2:
            both.wait(5)  # broken, an error, unless two threads are here together
        return [step % 43]

    batches = single(COLOUR)[0].batches(rows_of, 0, 100)
    next(batches)
    assert until(lambda: len(asked) == AHEAD + 1)
    time.sleep(0.05)
    assert sorted(asked) == list(range(AHEAD + 1))
    batches.close()


def test_an_abandoned_iterator_does_not_keep_the_interpreter():
    program = (
        "import sys, time, numpy as np, jaxvae\n"
        "assert 'grain' not in sys.modules\n"
        "split = jaxvae.datasets.stream(np.zeros((50, 4, 4), np.uint8)).splits['train']\n"
        "batches = split.batches(lambda step: time.sleep(0.01) or [step % 5], 0, 10**9)\n"
        "next(batches)\n"
        "raise KeyError('on the way')\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 1 and ran.stderr.splitlines()[-1] == "KeyError: 'on the way'"
