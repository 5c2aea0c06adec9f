"""Dense layers. For gradients, `dense` selects either the packed product or lists.

=============  ====================================================================================
`dense`        the public functions, and the three matrix products
`lists`        gradients from lists of the nonzero output gradients
=============  ====================================================================================
"""
