"""Data sets: MNIST, which ships with the package, and any folder of IDX files like it."""

from minicnn.datasets.dataset import Dataset
from minicnn.datasets.idx import read_idx
from minicnn.datasets.mnist import Datasets, load_dataset

__all__ = ["Dataset", "Datasets", "load_dataset", "read_idx"]
