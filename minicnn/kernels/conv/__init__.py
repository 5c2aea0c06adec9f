"""Convolution: `conv` chooses among the algorithms; the other files are one algorithm each.

=============  ====================================================================================
`conv`         the doors: forward, and the gradients
`im2col`       the general path: images to columns and a packed product, every configuration
`implicit`     a product that reads its columns in the image itself, for all without dilation
`winograd`     with fewer multiplications, for windows of 3x3 and 5x5
`pooled`       gradients through ReLU and 2x2 max pooling, from lists of those that are not zero
`filters`      packed filters, which the two read
=============  ====================================================================================
"""
