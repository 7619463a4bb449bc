"""Data sets in memory or streamed, from tensorflow-datasets, files or arrays.

A ``Split`` in memory holds ``x``, images [N, H, W, C] or any pytree of arrays [N, ...]. It may also
hold labels ``y`` [N] or ``attributes`` [N, A]. The images of ``shapes`` are kept as their factors
and rendered inside the training step. Sentences are rows of tokens (``texts``). A batch is a pure
function of (seed, step), so the iterator's state is the step. The training step preprocesses pixels
for a likelihood, one example at a time. The split carries this preprocessing, which has a name.

tensorflow-datasets is imported only when one of its sets is asked for, Grain only to stream, and
TensorFlow never.
"""

from jaxvae.datasets import grammars, shapes, single_cells, tables, texts
from jaxvae.datasets.batches import Stratum, batch_rows, num_examples, stratified_rows
from jaxvae.datasets.choices import automatic, chosen_pixels
from jaxvae.datasets.examples import Examples, examples_of, preprocessed, rows_of, with_preprocess
from jaxvae.datasets.labels import HIDING, checked_labels, hide_labels
from jaxvae.datasets.loading import load, looks_like_path, stream
from jaxvae.datasets.pixels import CORRUPTIONS, PREPROCESSING, describe, prepared, preprocessing
from jaxvae.datasets.splits import DataError, Dataset, Split
from jaxvae.datasets.streams import Stream
from jaxvae.datasets.subsets import attributes, held, random_subset, select

__all__ = [
    "CORRUPTIONS",
    "HIDING",
    "PREPROCESSING",
    "DataError",
    "Dataset",
    "Examples",
    "Split",
    "Stratum",
    "Stream",
    "attributes",
    "automatic",
    "batch_rows",
    "checked_labels",
    "chosen_pixels",
    "describe",
    "examples_of",
    "grammars",
    "held",
    "hide_labels",
    "load",
    "looks_like_path",
    "num_examples",
    "prepared",
    "preprocessed",
    "preprocessing",
    "random_subset",
    "rows_of",
    "select",
    "shapes",
    "single_cells",
    "stratified_rows",
    "stream",
    "tables",
    "texts",
    "with_preprocess",
]
