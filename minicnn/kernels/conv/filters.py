"""Pack filters into panels for `implicit` and `winograd`."""

from minicnn.kernels.gemm import pack
from minicnn.kernels.jit import helper
from minicnn.kernels.simd import PANEL, pointer


@helper
def pack_filters(w, first, turned, packed):
    """Copy a panel of filters of w (KH, KW, C, F), from `first` on, to (KH, KW, C, PANEL).

    If `turned`, copy the filters for the gradient of the input: w rotated by 180 degrees, with
    channels and filters exchanged, to (KH, KW, F, PANEL).
    """
    taps, channels, filters = w.shape[0] * w.shape[1], w.shape[2], w.shape[3]
    for tap in range(taps):
        if turned:
            source = pointer(w, ((taps - 1 - tap) * channels + first) * filters)
            pack(source, 1, filters, filters, min(PANEL, channels - first),
                 pointer(packed, tap * filters * PANEL))
        else:
            source = pointer(w, tap * channels * filters + first)
            pack(source, filters, 1, channels, min(PANEL, filters - first),
                 pointer(packed, tap * channels * PANEL))
