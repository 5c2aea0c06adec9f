"""The fast floor: arrays in, arrays out, written in Numba. No layer is known here.

==============  ==========================================================================
`jit`           the one way a kernel is compiled and cached
`pool`          the threads that run a kernel's chunks
`simd`          the vector type: load, store, broadcast, fma
`gemm`          the packed matrix product
`plane`         the padded image that the fused convolutions read, and what they write
`direct`        convolution of few channels, with ReLU and pooling
`winograd`      convolution with fewer multiplications, with ReLU and pooling
`sparse`        gradients from the few elements that live
`window`        where a sliding window stands: sizes, strides, padding
`im2col`        images to columns and back
`conv`          convolution: forward, gradient of the input, gradient of the kernel
`pooling`       max pooling
`dense`         the three products of a dense layer
`elementwise`   bias sums, ReLU, dropout
`update`        the optimizers' steps
==============  ==========================================================================
"""
