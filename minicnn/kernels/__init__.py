"""Numba kernels: functions from arrays to arrays, independent of the layers.

==============  ==========================================================================
`jit`           compiles and caches kernels
`cache`         compiled kernels on disk
`ahead`         a child process that compiles some kernels in parallel
`threads`       the thread pool that runs the chunks of a kernel
`simd`          SIMD vectors of this CPU's width; matrix products and sums in registers
`gemm`          the packed matrix product
`gather`        sums over lists of (offset, value)
`window`        the geometry of a sliding window: sizes, strides, padding
`conv`          convolution: forward, gradients of the input and the kernel
`dense`         the three matrix products of a dense layer
`pooling`       pooling: the largest element or the mean of each window
`normalize`     batch normalization: statistics, scaling, gradients
`elementwise`   sums, activations and their gradients, dropout
`update`        the update steps of the optimizers
`warp`          affine maps of images, for augmentation
==============  ==========================================================================
"""
