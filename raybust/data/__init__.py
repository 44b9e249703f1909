"""Datasets in [0, 1] and batches on the device: the room after config.

`load` reads a dataset and cuts it, `Batches` walks over one of its parts. Torch alone; neither Ray
nor MLflow is known here.
"""

from raybust.data.arrays import Parts, dark, parts_of_arrays
from raybust.data.batches import Batches, fitting_batch
from raybust.data.catalog import Source, check, describe, load, names
from raybust.data.decode import decoding_of
from raybust.data.explained import explain
from raybust.data.given import dataset_of, empty, images_of, read_array
from raybust.data.pictures import Pictures, read_pictures
from raybust.data.seeds import mix
from raybust.data.shards import kind_of
from raybust.data.splits import Dataset, Part, Split, spread
from raybust.data.streamed import Streamed, StreamedSplit

__all__ = [
    "Batches",
    "Dataset",
    "Part",
    "Parts",
    "Pictures",
    "Source",
    "Split",
    "Streamed",
    "StreamedSplit",
    "check",
    "dark",
    "dataset_of",
    "decoding_of",
    "describe",
    "empty",
    "explain",
    "fitting_batch",
    "images_of",
    "kind_of",
    "load",
    "mix",
    "names",
    "parts_of_arrays",
    "read_array",
    "read_pictures",
    "spread",
]
