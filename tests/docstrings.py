"""Run the examples in the docstrings of a module."""

import doctest
import importlib

import pytest

# The modules whose examples need an extra, and what they import from it.
EXTRAS = {
    "minicnn.datasets.folder": ["PIL"],
    "minicnn.distributed": ["mpi4py"],
    "minicnn.export.onnx": ["onnx"],
    "minicnn.export.onnx_reader": ["onnx"],
    "minicnn.export.safetensors": ["safetensors"],
    "minicnn.images": ["PIL"],
    "minicnn.plots": ["matplotlib"],
    "minicnn.report": ["matplotlib"],
    "minicnn.summaries": ["tensorboardX", "tensorboard", "PIL"],
}


def run(module):
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.REPORT_ONLY_FIRST_FAILURE
    result = doctest.testmod(importlib.import_module(module), optionflags=flags)
    if result.failed:
        pytest.fail(f"{result.failed} of {result.attempted} examples", pytrace=False)
