"""Data sets: MNIST, which is part of the package, and other folders of IDX files."""

from minicnn.datasets.dataset import Dataset
from minicnn.datasets.idx import read_idx
from minicnn.datasets.mnist import Datasets, load_dataset

__all__ = ["Dataset", "Datasets", "load_dataset", "read_idx"]
