"""A convolutional neural network library to read: NumPy arrays, Numba kernels, hand-written backward.

>>> import minicnn as mc
"""

from minicnn import datasets, initializers, layers, losses, metrics, optimizers
from minicnn.context import Context, Workspace
from minicnn.kernels.pool import get_num_threads, set_num_threads
from minicnn.layers import Sequential
from minicnn.ops import argmax, cast, identity, one_hot, relu, reshape, sigmoid, softmax, tanh
from minicnn.parameter import Parameter
from minicnn.tensor import Op, Tensor
