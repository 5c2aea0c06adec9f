"""The Sequential model: layers in a row, and what a user does with them."""

from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.context import Context
from minicnn.layers.chain import Chain


class Sequential(Chain):
    """Run layers one after the other.

    Models may share layers. Layers that were built before keep their parameters; if all layers
    were, and their shapes fit, the model can be used without `build`.

    Parameters
    ----------
    layers : iterable of Layer
        No layer may occur twice. ``model.add(layer)`` adds another one; ``model[0]`` is the first,
        and ``model[:-1]`` a model of all but the last.
    name : str, optional
    fuse : bool
        Compute adjacent layers in one pass where possible. The results differ only by rounding,
        relative to the largest output nearby. Zeros are skipped: if an input is infinite, a
        gradient may be finite instead of NaN.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> model = mc.Sequential([
    ...     mc.layers.Conv2D(8, 3, activation="relu"), mc.layers.MaxPooling2D(2),
    ...     mc.layers.Flatten(), mc.layers.Dense(10)])
    >>> model.build((None, 28, 28, 1), rng=0)
    (None, 10)
    >>> model.predict(np.zeros((3, 28, 28, 1), np.float32)).shape
    (3, 10)
    >>> model[0], len(model)
    (Conv2D(8, 3, activation='relu', name='conv2d'), 4)
    """

    def predict(self, x: Any, batch_size: int = 100) -> np.ndarray:
        """Return the outputs for all rows of `x`, computed `batch_size` rows at a time.

        Parameters
        ----------
        x : ndarray
            (N, ...), float; converted to the model's dtype.
        batch_size : int

        Returns
        -------
        ndarray
            (N, ...)
        """
        self._use_built_layers()
        batch_size = checks.integer(batch_size, "batch_size")
        x = np.atleast_1d(checks.array(x, "x"))
        if x.dtype.kind == "f" and self.dtype is not None:
            x = x.astype(self.dtype, copy=False)
        self.check_inputs(x)  # before it is cut: errors quote the user's shape
        starts = range(0, max(len(x), 1), batch_size)
        return np.concatenate(
            [self.forward(x[start : start + batch_size], Context(save=False)) for start in starts]
        )
