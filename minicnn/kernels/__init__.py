"""The fast floor: arrays in, arrays out, written in Numba. No layer is known here.

==============  ==========================================================================
`jit`           the one way a kernel is compiled and cached
`cache`         compiled kernels on disk
`ahead`         the process that compiles some of them meanwhile
`threads`       the threads that run a kernel's chunks
`simd`          the vector type, as wide as this CPU's; products and sums in registers
`gemm`          the packed matrix product
`gather`        sums over lists of (offset, value)
`window`        where a sliding window stands: sizes, strides, padding
`conv`          convolution: forward, gradient of the input, gradient of the kernel
`dense`         the three products of a dense layer
`pooling`       max pooling
`elementwise`   bias sums, ReLU, dropout
`update`        the optimizers' steps
==============  ==========================================================================
"""
