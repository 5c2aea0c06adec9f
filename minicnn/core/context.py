"""One pass through a model: what forward saves for backward, and buffers."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from minicnn.core import checks


class Context:
    """The state of one forward pass, and of the backward pass that may follow it.

    A layer saves what its backward needs in its slot, ``ctx[self] = x``, and not in itself: so
    threads can share a model, each with its own context.

    Parameters
    ----------
    training : bool
        Whether layers such as dropout behave as in training.
    rng : numpy.random.Generator or int, optional
        The source of random numbers, or a seed of a new one; needed if `training` is True and a
        layer draws any.
    save : bool
        If False, nothing is saved for backward, as in predict.
    workspace : Workspace, optional
        Buffers to reuse. By default every array is new.
    first_row : int
        The index of the first row, if the batch is a part of a larger one.
    total : function, optional
        Returns the sum of an array over all processes that compute a part of the batch; batch
        normalization needs it.
    counted : bool
        False if this process has no part of the batch, and its row is only a placeholder.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> layer = mc.layers.Dropout(0.5)
    >>> layer.build((None, 4), rng=0)
    (None, 4)
    >>> x = np.ones((2, 4), np.float32)
    >>> layer.forward(x, mc.Context(training=False))
    array([[1., 1., 1., 1.],
           [1., 1., 1., 1.]], dtype=float32)
    """

    def __init__(
        self,
        training: bool = False,
        rng: np.random.Generator | int | None = None,
        save: bool = True,
        workspace: "Workspace | None" = None,
        first_row: int = 0,
        total: Callable[[np.ndarray], np.ndarray] | None = None,
        counted: bool = True,
    ) -> None:
        self.training = checks.boolean(training, "training")
        self.rng = checks.optional(checks.generator, rng)
        self.save = checks.boolean(save, "save")
        self.workspace = checks.instance(workspace, Workspace | None, "workspace", "a Workspace")
        self.first_row = checks.integer(first_row, "first_row", 0)
        self._total = checks.optional(checks.function, total, "total")
        self.counted = checks.boolean(counted, "counted")
        self._slots: dict[Any, Any] = {}
        self._key: int | None = None
        self._drawn: Counter[str] = Counter()
        self.packed: dict[Any, Any] | None = None  # by layer, if no kernel ever changes

    def __setitem__(self, layer: Any, saved: Any) -> None:
        if self.save:
            self._slots[layer] = saved

    def __getitem__(self, layer: Any) -> Any:
        try:
            return self._slots[layer]
        except KeyError:
            raise RuntimeError(
                f"{layer.label}: backward needs what forward saved in the same context; "
                "call forward first, with a Context whose `save` is True"
            ) from None

    def draw_key(self, label: str, seed: int) -> int:
        """Return 64 random bits for a layer.

        They are a hash of the layer's name and of one number that a pass draws from `rng`, so
        they do not depend on the order in which layers run.
        """
        if self.rng is None:
            raise ValueError(
                f"{label}: needs random numbers in training; give the context a generator, "
                "Context(training=True, rng=seed)"
            )
        if self._key is None:
            self._key = int(self.rng.integers(1 << 63))
        self._drawn[label] += 1
        text = f"{self._key} {seed} {label} {self._drawn[label]}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")

    def total(self, array: np.ndarray) -> np.ndarray:
        """Return the sum of an array over all parts of the batch."""
        own = array if self.counted else np.zeros_like(array)
        return own if self._total is None else self._total(own)

    def empty(self, layer: Any, role: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Return an uninitialized array; with a workspace, the buffer of (layer, role)."""
        if self.workspace is None:
            return np.empty(shape, dtype)
        return self.workspace.empty(layer, role, shape, dtype)

    def pack(self, layer: Any, make: Callable[..., Any], *arguments: Any) -> Any:
        """Return a layer's kernel as `make` packs it, once; None if kernels may change."""
        if self.packed is None:
            return None
        if layer not in self.packed:
            self.packed[layer] = make(*arguments)
        return self.packed[layer]


class Workspace:
    """Buffers that the steps of a training loop reuse.

    The results of a pass with a workspace, and what it has saved for backward, are valid until the
    next pass with it. So run backward before the next forward, and give each thread its own
    workspace: passes that share one at the same time overwrite each other's buffers, and the
    results are wrong without an error.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> model = mc.Sequential([mc.layers.Dense(2)])
    >>> model.build((None, 3), rng=0)
    (None, 2)
    >>> workspace = mc.Workspace()
    >>> x = np.ones((5, 3), np.float32)
    >>> first = model.forward(x, mc.Context(workspace=workspace))
    >>> second = model.forward(x, mc.Context(workspace=workspace))
    >>> np.shares_memory(first, second)
    True
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, str], np.ndarray] = {}
        self.calls: dict[Any, Any] = {}  # of `layers.repeated`

    def empty(self, layer: Any, role: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Return the first part of the buffer of (layer, role) as an array of this shape."""
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        buffer = self._buffers.get((layer, role))
        if buffer is None or buffer.size < size:
            buffer = self._buffers[layer, role] = np.empty(size, np.uint8)
        return buffer[:size].view(dtype).reshape(shape)
