"""The layer functions of the TensorFlow guide: each applies a new layer to a Tensor.

The arguments are those of the classes, which document them.
"""

from typing import Any

from minicnn.core import checks
from minicnn.core.hints import hinted
from minicnn.core.op import Op, Tensor, apply
from minicnn.layers.batch_normalization import BatchNormalization
from minicnn.layers.conv2d import Conv2D
from minicnn.layers.conv2d_transpose import Conv2DTranspose
from minicnn.layers.dense import Dense
from minicnn.layers.depthwise_conv2d import SeparableConv2D
from minicnn.layers.dropout import Dropout
from minicnn.layers.pooling2d import AveragePooling2D, MaxPooling2D
from minicnn.layers.shape import Flatten


@hinted
def conv2d(
    inputs: Any,
    filters: int,
    kernel_size: Any,
    strides: Any = (1, 1),
    padding: Any = "valid",
    data_format: str = "channels_last",
    dilation_rate: Any = (1, 1),
    activation: Any = None,
    use_bias: bool = True,
    kernel_initializer: Any = None,
    bias_initializer: Any = "zeros",
    kernel_regularizer: Any = None,
    bias_regularizer: Any = None,
    trainable: bool = True,
    name: str | None = None,
) -> Any:
    """Apply a new `Conv2D` to the Tensor `inputs`.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> x = mc.Graph().placeholder("x", (None, 28, 28, 1), np.float32)
    >>> mc.layers.conv2d(inputs=x, filters=32, kernel_size=[5, 5], padding="same")
    Tensor('conv2d', shape=(None, 28, 28, 32), dtype=float32)
    """
    return _apply(inputs, Conv2D(
        filters, kernel_size, strides=strides, padding=padding, data_format=data_format,
        dilation_rate=dilation_rate, activation=activation, use_bias=use_bias,
        kernel_initializer=kernel_initializer, bias_initializer=bias_initializer,
        trainable=trainable, name=name, kernel_regularizer=kernel_regularizer,
        bias_regularizer=bias_regularizer,
    ))


@hinted
def conv2d_transpose(
    inputs: Any,
    filters: int,
    kernel_size: Any,
    strides: Any = (1, 1),
    padding: Any = "valid",
    data_format: str = "channels_last",
    activation: Any = None,
    use_bias: bool = True,
    kernel_initializer: Any = None,
    bias_initializer: Any = "zeros",
    kernel_regularizer: Any = None,
    bias_regularizer: Any = None,
    trainable: bool = True,
    name: str | None = None,
) -> Any:
    """Apply a new `Conv2DTranspose` to the Tensor `inputs`.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> x = mc.Graph().placeholder("x", (None, 7, 7, 64), np.float32)
    >>> mc.layers.conv2d_transpose(inputs=x, filters=32, kernel_size=5, strides=2, padding="same")
    Tensor('conv2d_transpose', shape=(None, 14, 14, 32), dtype=float32)
    """
    return _apply(inputs, Conv2DTranspose(
        filters, kernel_size, strides=strides, padding=padding, data_format=data_format,
        activation=activation, use_bias=use_bias, kernel_initializer=kernel_initializer,
        bias_initializer=bias_initializer, trainable=trainable, name=name,
        kernel_regularizer=kernel_regularizer, bias_regularizer=bias_regularizer,
    ))


@hinted
def separable_conv2d(
    inputs: Any,
    filters: int,
    kernel_size: Any,
    strides: Any = (1, 1),
    padding: Any = "valid",
    data_format: str = "channels_last",
    dilation_rate: Any = (1, 1),
    depth_multiplier: int = 1,
    activation: Any = None,
    use_bias: bool = True,
    depthwise_initializer: Any = None,
    pointwise_initializer: Any = None,
    bias_initializer: Any = "zeros",
    depthwise_regularizer: Any = None,
    pointwise_regularizer: Any = None,
    bias_regularizer: Any = None,
    trainable: bool = True,
    name: str | None = None,
) -> Any:
    """Apply a new `SeparableConv2D` to the Tensor `inputs`.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> x = mc.Graph().placeholder("x", (None, 28, 28, 16), np.float32)
    >>> mc.layers.separable_conv2d(inputs=x, filters=32, kernel_size=3, padding="same")
    Tensor('separable_conv2d', shape=(None, 28, 28, 32), dtype=float32)
    """
    return _apply(inputs, SeparableConv2D(
        filters, kernel_size, strides=strides, padding=padding, data_format=data_format,
        dilation_rate=dilation_rate, depth_multiplier=depth_multiplier, activation=activation,
        use_bias=use_bias, depthwise_initializer=depthwise_initializer,
        pointwise_initializer=pointwise_initializer, bias_initializer=bias_initializer,
        depthwise_regularizer=depthwise_regularizer,
        pointwise_regularizer=pointwise_regularizer, bias_regularizer=bias_regularizer,
        trainable=trainable, name=name,
    ))


@hinted
def max_pooling2d(
    inputs: Any,
    pool_size: Any,
    strides: Any,
    padding: Any = "valid",
    data_format: str = "channels_last",
    name: str | None = None,
) -> Any:
    """Apply a new `MaxPooling2D` to the Tensor `inputs`.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> x = mc.Graph().placeholder("x", (None, 28, 28, 32), np.float32)
    >>> mc.layers.max_pooling2d(inputs=x, pool_size=[2, 2], strides=2)
    Tensor('max_pooling2d', shape=(None, 14, 14, 32), dtype=float32)
    """
    return _apply(inputs, MaxPooling2D(pool_size, strides, padding, data_format, name))


@hinted
def average_pooling2d(
    inputs: Any,
    pool_size: Any,
    strides: Any,
    padding: Any = "valid",
    data_format: str = "channels_last",
    name: str | None = None,
) -> Any:
    """Apply a new `AveragePooling2D` to the Tensor `inputs`.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> x = mc.Graph().placeholder("x", (None, 28, 28, 32), np.float32)
    >>> mc.layers.average_pooling2d(inputs=x, pool_size=[2, 2], strides=2)
    Tensor('average_pooling2d', shape=(None, 14, 14, 32), dtype=float32)
    """
    return _apply(inputs, AveragePooling2D(pool_size, strides, padding, data_format, name))


@hinted
def batch_normalization(
    inputs: Any,
    axis: int = -1,
    momentum: float = 0.99,
    epsilon: float = 1e-3,
    center: bool = True,
    scale: bool = True,
    beta_initializer: Any = "zeros",
    gamma_initializer: Any = "ones",
    moving_mean_initializer: Any = "zeros",
    moving_variance_initializer: Any = "ones",
    training: bool = False,
    trainable: bool = True,
    name: str | None = None,
) -> Any:
    """Apply a new `BatchNormalization` to the Tensor `inputs`.

    It takes the statistics of the batch only if `training` is True; write
    ``training=mode == ModeKeys.TRAIN``. Then every step also updates the moving averages: there is
    no collection of update operations that a program could forget, as in TensorFlow.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> x = mc.Graph().placeholder("x", (None, 14, 14, 32), np.float32)
    >>> mc.layers.batch_normalization(inputs=x, training=True)
    Tensor('batch_normalization', shape=(None, 14, 14, 32), dtype=float32)
    """
    training = checks.boolean(training, "training")
    return _apply(inputs, BatchNormalization(
        axis, momentum, epsilon, center, scale, beta_initializer, gamma_initializer,
        moving_mean_initializer, moving_variance_initializer, trainable, name, training,
    ))


def flatten(inputs: Any, name: str | None = None) -> Any:
    """Apply a new `Flatten` to the Tensor `inputs`.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> x = mc.Graph().placeholder("x", (None, 7, 7, 64), np.float32)
    >>> mc.layers.flatten(x)
    Tensor('flatten', shape=(None, 3136), dtype=float32)
    """
    return _apply(inputs, Flatten(name))


@hinted
def dense(
    inputs: Any,
    units: int,
    activation: Any = None,
    use_bias: bool = True,
    kernel_initializer: Any = None,
    bias_initializer: Any = "zeros",
    kernel_regularizer: Any = None,
    bias_regularizer: Any = None,
    trainable: bool = True,
    name: str | None = None,
) -> Any:
    """Apply a new `Dense` to the Tensor `inputs`.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> x = mc.Graph().placeholder("x", (None, 3136), np.float32)
    >>> mc.layers.dense(inputs=x, units=1024, activation=mc.relu)
    Tensor('dense', shape=(None, 1024), dtype=float32)
    """
    return _apply(inputs, Dense(
        units, activation, use_bias, kernel_initializer, bias_initializer, trainable, name,
        kernel_regularizer=kernel_regularizer, bias_regularizer=bias_regularizer,
    ))


@hinted
def dropout(
    inputs: Any,
    rate: float = 0.5,
    noise_shape: Any = None,
    seed: int | None = None,
    training: bool = False,
    name: str | None = None,
) -> Any:
    """Apply a new `Dropout` to the Tensor `inputs`.

    It drops only if `training` is True; the guide writes ``training=mode == ModeKeys.TRAIN``.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> x = mc.Graph().placeholder("x", (None, 1024), np.float32)
    >>> mc.layers.dropout(inputs=x, rate=0.4, training=True)
    Tensor('dropout', shape=(None, 1024), dtype=float32)
    """
    return _apply(
        inputs, Dropout(rate, noise_shape, seed, checks.boolean(training, "training"), name)
    )


def _apply(inputs: Any, layer: Op) -> Any:
    """Apply a new layer to a Tensor; refuse arrays: the layer's weights would be lost."""
    if not isinstance(inputs, Tensor):
        kind = type(layer).__name__
        remedy = checks.part_of(inputs) or (
            f"; for arrays use the class: layer = {kind}(...), layer.build(x.shape, rng=0), "
            "layer.forward(x, Context())"
        )
        raise TypeError(f"`inputs` must be a Tensor, got {checks.describe(inputs)}{remedy}")
    return apply(layer, inputs)
