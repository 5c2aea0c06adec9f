"""Data sets: MNIST, which is part of the package, folders of IDX files and of pictures."""

from minicnn.datasets.augment import augment
from minicnn.datasets.dataset import Dataset
from minicnn.datasets.folder import images_from_folder
from minicnn.datasets.idx import read_idx
from minicnn.datasets.mnist import Datasets, load_dataset

__all__ = [
    "Dataset", "Datasets", "augment", "images_from_folder", "load_dataset", "read_idx",
]
