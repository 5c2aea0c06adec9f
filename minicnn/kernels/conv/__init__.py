"""Convolution. `conv` selects an algorithm; each of the other modules implements one.

=============  ====================================================================================
`conv`         the public functions: forward pass and gradients
`im2col`       the general algorithm for all configurations: im2col and a packed product
`implicit`     a product that reads its columns directly from the image; for float32
`winograd`     Winograd convolution, with fewer multiplications, for 3x3 and 5x5 windows
`depthwise`    each channel by itself: its own public functions
`pooled`       gradients through ReLU and 2x2 max pooling, from lists of nonzero gradients
`shared`       packed filters, padded images, pooling of outputs
=============  ====================================================================================
"""
