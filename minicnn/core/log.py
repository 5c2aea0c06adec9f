"""The logger of the library, and what is logged of an evaluation."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

logger = logging.getLogger("minicnn")


def numbers(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results of an evaluation that are numbers: the loss and metrics, not arrays."""
    return {k: v for k, v in results.items() if k != "global_step" and np.ndim(v) == 0}
