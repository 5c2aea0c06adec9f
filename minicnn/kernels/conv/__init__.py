"""Convolution: `conv` chooses among the algorithms; the other files are one algorithm each.

=============  ====================================================================================
`conv`         the doors: forward, and the gradients
`im2col`       the general path: images to columns and a packed product, every configuration
`direct`       straight from the definition, for few channels
`winograd`     with fewer multiplications, for windows of 3x3 and 5x5
`pooled`       gradients through ReLU and 2x2 max pooling, from lists of those that are not zero
`padded`       what the fused ones share: the padded image they read, the 2x2 outputs they write
=============  ====================================================================================
"""
