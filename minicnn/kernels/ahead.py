"""Compile the kernels of a float32 training step in a child process.

Numba compiles on one thread. `cache` therefore starts this program as a child process,
``python -m minicnn.kernels.ahead``, if a kernel is not found on disk. The child starts with
kernels that its parent needs late and saves them in the cache, where the parent finds them. The two
processes do not communicate, and neither waits for the other. If the child fails, only time is
lost.
"""

import gc
import os
import sys

import numpy as np

from minicnn.kernels import update
from minicnn.kernels.conv import conv
from minicnn.kernels.dense import dense, lists
from minicnn.kernels.elementwise import relu_gradient
from minicnn.kernels.window import slide


def compile_ahead(parent: int | None = None) -> None:
    """Compile the kernels of a float32 training step, in an order in which few are compiled twice.

    The parent compiles the kernels in the order of a step, at the same time.

    Parameters
    ----------
    parent : int, optional
        Identifier of the parent process. If it has ended, stop after the current kernel.
    """
    one, window, large = (slide((4, 4), (k, k), (1, 1), "same") for k in (1, 3, 5))
    x, w, b, rows = _new(1, 4, 4, 8), _new(3, 3, 8, 8), _new(8), _new(8, 8)
    half, code = _new(1, 2, 2, 8), np.zeros((1, 2, 2, 8), np.uint8)
    for door in (
        lambda: dense.forward(rows, rows, b, _new(8, 8)),
        lambda: lists.gradients(rows, rows, rows, _new(8, 8), _new(8, 8)),
        lambda: conv.pooled_gradients(x, half, code, w, _new(3, 3, 8, 8), _new(8), None, window),
        lambda: update.sgd(_new(8), b, (0.0, 0.0)),
        lambda: relu_gradient(rows, rows, _new(8, 8)),
        lambda: dense.gradients(rows, rows, rows, _new(8, 8), _new(8, 8), False),
        lambda: conv.kernel_gradient(x, x, _new(3, 3, 8, 8), _new(8), window),
        lambda: conv.forward(_new(1, 4, 4, 32), _new(5, 5, 32, 8), b, x, large),  # Winograd
        lambda: conv.forward(x, w[:1, :1], b, _new(1, 4, 4, 8), one),  # implicit
    ):
        if parent is None or os.getppid() == parent:
            door()


def _new(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


if __name__ == "__main__":
    gc.disable()
    sys.modules["scipy"] = None  # type: ignore[assignment]  # Numba imports it, kernels do not
    compile_ahead(int(sys.argv[1]) if os.name == "posix" else None)
