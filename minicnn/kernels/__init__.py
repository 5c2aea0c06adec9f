"""The fast floor: arrays in, arrays out, written in Numba. No layer is known here.

==============  ==========================================================================
`jit`           the one way a kernel is compiled and cached
`pool`          the threads that run a kernel's chunks
`simd`          the vector type: load, store, broadcast, fma
`gemm`          the packed matrix product
`window`        where a sliding window stands: sizes, strides, padding
`im2col`        images to columns and back
`conv`          convolution: forward, gradient of the input, gradient of the kernel
`pooling`       max pooling
`dense`         the three products of a dense layer
`elementwise`   bias sums, ReLU, dropout
`update`        the optimizers' steps
==============  ==========================================================================
"""
