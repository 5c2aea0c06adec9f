"""Independent random streams of one seed."""

import enum

import numpy as np


class Stream(enum.IntEnum):
    """What random numbers of a run are used for; each use has its own stream.

    The numbers are part of what a seed means: changing one changes the results of every run.
    """

    INIT = 0  # start values of the parameters
    ORDER = 1  # order of the rows in each epoch
    DROPOUT = 2  # randomness inside each step
    SPLIT = 3  # which rows are for validation
    AUGMENT = 4  # changes of the images in each batch

    def generator(self, seed: int, *position: int) -> np.random.Generator:
        """Return the generator of this stream, at an epoch or a step if `position` gives one."""
        return np.random.default_rng((seed, int(self), *position))
