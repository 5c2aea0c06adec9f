"""Save and load weights as safetensors files, for other frameworks (extra `safetensors`).

The arrays have the same names and layouts as in minicnn.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from minicnn.core import VERSION, checks
from minicnn.core.extras import require
from minicnn.core.files import open_regular, replacing
from minicnn.core.weights import SKIP_THEM, by_patterns, fill, fitting, parameters_of
from minicnn.estimator import Estimator

_LAYOUT = (
    "conv2d kernel: (height, width, channels, filters); dense kernel: (inputs, units); "
    "conv2d_transpose kernel: (height, width, filters, channels); "
    "depthwise_kernel: (height, width, channels, multiplier)"
)


def save_safetensors(model: Any, path: str | Path) -> None:
    """Write every parameter of a model under its name, such as ``conv2d/kernel``.

    The metadata of the file contain its `format`, the `minicnn_version` and the `layout` of the
    kernels.

    Parameters
    ----------
    model : Layer or Estimator
        A built layer; or an Estimator, whose newest checkpoint at the time of the call is written.
    path : str or Path

    Notes
    -----
    The network of the guide with these weights in PyTorch::

        import torch
        from safetensors.torch import load_file

        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.conv2d = torch.nn.Conv2d(1, 32, 5, padding=2)
                self.conv2d_1 = torch.nn.Conv2d(32, 64, 5, padding=2)
                self.dense = torch.nn.Linear(7 * 7 * 64, 1024)
                self.dense_1 = torch.nn.Linear(1024, 10)

            def forward(self, x):                     # (N, 28, 28, 1), as in minicnn
                x = x.permute(0, 3, 1, 2)
                x = torch.nn.functional.max_pool2d(self.conv2d(x).relu(), 2)
                x = torch.nn.functional.max_pool2d(self.conv2d_1(x).relu(), 2)
                x = x.permute(0, 2, 3, 1).flatten(1)  # minicnn flattens (height, width, channel)
                return self.dense_1(self.dense(x).relu())

        state = {}
        for name, array in load_file("mnist.safetensors").items():
            if name.endswith("/kernel"):  # convolution: (height, width, in, out); dense: (in, out)
                array = array.permute(3, 2, 0, 1) if array.ndim == 4 else array.T
            state[name.replace("/kernel", ".weight").replace("/", ".")] = array
        net = Net().eval()
        net.load_state_dict(state)

    Examples
    --------
    >>> import tempfile, pathlib, minicnn as mc
    >>> model = mc.Sequential([mc.layers.Dense(2)])
    >>> model.build((None, 3), rng=0)
    (None, 2)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "weights.safetensors"
    >>> mc.export.save_safetensors(model, path)
    >>> mc.export.load_safetensors(model, path)
    """
    path = checks.path(path, "path")
    if isinstance(model, Estimator):
        arrays = model._models.chosen(None).weights()  # all of the same checkpoint
    else:
        arrays = {name: parameter.value for name, parameter in parameters_of(model).items()}
    metadata = {"format": "minicnn", "minicnn_version": VERSION, "layout": _LAYOUT}
    data = require("safetensors.numpy", "safetensors").save(arrays, metadata)
    with replacing(path) as file:
        file.write(data)


def load_safetensors(
    model: Any, path: str | Path, *, only: Any = None, skip: Any = None, strict: bool = True
) -> None:
    """Read every parameter of a model from a safetensors file.

    Parameters
    ----------
    model : Layer
        A built layer, with the same names and shapes as the file.
    path : str or Path
    only, skip : str or sequence of str, optional
        Patterns of the names to read, and not to read, as for `load_weights`.
    strict : bool
        Whether all that is selected must fit; see `load_weights`.

    Raises
    ------
    ValueError
        If the file is not a valid safetensors file, or a name or a shape differs; the error names
        it. Nothing is changed then.
    FileNotFoundError
        If there is no such file.

    Examples
    --------
    >>> import tempfile, pathlib, minicnn as mc
    >>> model = mc.Sequential([mc.layers.Dense(2)])
    >>> model.build((None, 3), rng=0)
    (None, 2)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "weights.safetensors"
    >>> mc.export.save_safetensors(model, path)
    >>> mc.export.load_safetensors(model, path)
    """
    path = checks.path(path, "path")
    parameters = parameters_of(model)
    select = by_patterns(only, skip)
    strict = checks.boolean(strict, "strict")
    safe_open = require("safetensors", "safetensors").safe_open
    open_regular(path, follow=True).close()  # raises Python's errors if it cannot be read
    try:
        file = safe_open(path, "numpy")  # maps it into memory
        forms = {name: _form(file.get_slice(name)) for name in sorted(file.keys())}
    except Exception as error:  # a damaged header may raise anything
        raise ValueError(
            f"{path} is not a safetensors file of NumPy's types ({error}); save it again"
        ) from error
    names = fitting(parameters, forms, path, select, SKIP_THEM, strict)
    fill(parameters, {name: file.get_tensor(name) for name in names})


def _form(array: Any) -> SimpleNamespace:
    """Return the shape and the type of an array that is not read."""
    code = array.get_dtype()  # such as F32
    dtype = np.dtype("?" if code == "BOOL" else f"{code[0].lower()}{int(code[1:]) // 8}")
    return SimpleNamespace(shape=tuple(array.get_shape()), dtype=dtype)
