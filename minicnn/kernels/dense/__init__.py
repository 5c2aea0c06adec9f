"""A dense layer: `dense` chooses between the packed product and, for gradients, lists.

=============  ====================================================================================
`dense`        the doors, and the three products
`lists`        gradients from lists of those that are not zero
=============  ====================================================================================
"""
