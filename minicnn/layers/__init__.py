"""Layers: classes with forward and backward, and the functions of the TensorFlow guide."""

from typing import TYPE_CHECKING

from minicnn.layers.activation import Activation
from minicnn.layers.batch_normalization import BatchNormalization
from minicnn.layers.conv2d import Conv2D
from minicnn.layers.conv2d_transpose import Conv2DTranspose
from minicnn.layers.dense import Dense
from minicnn.layers.depthwise_conv2d import DepthwiseConv2D, SeparableConv2D
from minicnn.layers.dropout import Dropout
from minicnn.layers.functional import (
    average_pooling2d,
    batch_normalization,
    conv2d,
    conv2d_transpose,
    dense,
    dropout,
    flatten,
    max_pooling2d,
    separable_conv2d,
)
from minicnn.layers.layer import Layer
from minicnn.layers.pooling2d import (
    AveragePooling2D,
    GlobalAveragePooling2D,
    GlobalMaxPooling2D,
    MaxPooling2D,
)
from minicnn.layers.regularizers import l1_regularizer, l2_regularizer
from minicnn.layers.residual import Residual
from minicnn.layers.shape import Flatten, Reshape

if TYPE_CHECKING:  # the package sets it, since Sequential is above the layers
    from minicnn.sequential import Sequential

__all__ = [
    "Activation",
    "AveragePooling2D",
    "BatchNormalization",
    "Conv2D",
    "Conv2DTranspose",
    "Dense",
    "DepthwiseConv2D",
    "Dropout",
    "Flatten",
    "GlobalAveragePooling2D",
    "GlobalMaxPooling2D",
    "Layer",
    "MaxPooling2D",
    "Reshape",
    "Residual",
    "SeparableConv2D",
    "Sequential",
    "average_pooling2d",
    "batch_normalization",
    "conv2d",
    "conv2d_transpose",
    "dense",
    "dropout",
    "flatten",
    "l1_regularizer",
    "l2_regularizer",
    "max_pooling2d",
    "separable_conv2d",
]
