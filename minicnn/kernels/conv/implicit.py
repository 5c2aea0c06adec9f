"""Convolution as an implicit matrix product (implicit GEMM), float32.

Without dilation, the KW taps of one row of the window are KW * C adjacent elements of the padded
image, in the same order as in the kernel. With dilation, only the C channels of a tap are. The
outputs are therefore a sum of KH, or KH KW, matrix products whose left factors are parts of the
image: their rows, one for each output, are sw * C elements apart in a row of outputs, and overlap.

    y[oy, ox] = b + sum over u of padded[sh oy + u, sw ox ...] w[u]        (KW C) times (KW C, F)
    dw[u]    += sum over oy of padded[sh oy + u, sw ox ...]' dz[oy]        (KW C, OW) times (OW, F)

`simd.tile` computes both sums, over u or oy and within a row, without storing a matrix of columns.
It reads where the rows of the left factor begin from a list, so that a tile can go on in the next
row of outputs, or in the next image. The same passes apply ReLU and 2x2 max pooling to y, compute
the gradient before ReLU (dz = 0 where y <= 0, else dy), and sum the gradient of the bias.

The work is split into *bands*: a few rows of outputs of one image, or a few small images. The rows
that a band reads are copied to `padded`. If the window never leaves the image, they are read in
place instead. For the gradient, dz of a band is packed into panels. A band has about 128 positions,
so that both stay in the first-level cache.

A long chain of float32 additions loses precision. In the gradient of the kernel, each band is
therefore summed separately, in registers. The sums of a few bands are added in order, and the
results pairwise, as a tree.

`conv` uses this algorithm for all float32 convolutions that no faster one supports.

S. Chetlur et al., "cuDNN: Efficient primitives for deep learning", arXiv:1410.0759, 2014.
"""

from typing import Any, NamedTuple

import numpy as np

from minicnn.kernels.conv.shared import pack_filters, write_maxima
from minicnn.kernels.elementwise import (
    BLOCK,
    FEW,
    add_waiting,
    blocks_of,
    sum_sums,
    waiting_sums,
)
from minicnn.kernels.gemm import block_of_rows, clear, copy, packed_shape, round_up
from minicnn.kernels.jit import helper, kernel
from minicnn.kernels.simd import (
    LANES,
    PANEL,
    add,
    load_some,
    pointer,
    splat,
    store,
    store_some,
    where_positive,
)
from minicnn.kernels.threads import aligned, parallel_for, share
from minicnn.kernels.window import Window

_POSITIONS = 128  # of a band
_POOLED_POSITIONS = 64  # of a band with max pooling


class _Bands(NamedTuple):
    """How the outputs are split into bands, as a tuple that kernels can unpack."""

    rows: int  # of outputs of each image of a band
    images: int  # in a band: several if they are small
    per_image: int  # bands in an image
    in_place: bool  # whether the window never leaves the image
    depth: int  # positions of a band whose patches are equally far apart
    high: int  # rows of the image that a band reads, or of the image if it is read in place
    wide: int  # columns of these rows
    run: int  # taps that are adjacent in the image: without dilation, those of a row of the window


def pack(w: np.ndarray, turned: bool = False) -> np.ndarray:
    """Return the filters in panels."""
    filters = w.shape[2 if turned else 3]
    panels = packed_shape(w.size // filters, filters, np.float32)
    packed = aligned(panels, np.float32)
    parallel_for(_pack, panels[0], (w,), (packed,), turned, work=16 * w.size)
    return packed


def forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, y: np.ndarray, code: np.ndarray, window: Window,
    relu: bool, pool: bool, chunks: int, turned: bool = False, packed: np.ndarray | None = None,
) -> None:
    """Write the same outputs as `winograd.forward`."""
    channels, filters = x.shape[3], b.size
    packed = pack(w, turned) if packed is None else packed
    bands = _bands(window, pool)
    work = len(x) * window.out_h * window.out_w * w.size
    total = -(-len(x) // bands.images) * bands.per_image
    length = share(total, chunks, work)
    parallel_for(
        _forward, -(-total // length), (x, packed, b), (y, code), tuple(window), tuple(bands),
        length, relu, pool, work=work,
        scratch={
            **_places(window, bands, channels, 1),
            "outputs": ((bands.rows * window.out_w * pool, round_up(filters, LANES)), np.float32),
        },
    )


def kernel_gradient(
    x: np.ndarray, dy: np.ndarray, dw: np.ndarray, db: np.ndarray, window: Window,
    y: np.ndarray | None, dz: np.ndarray | None, chunks: int,
) -> None:
    """Write dw and db. With y, dy is the gradient after ReLU; dz gets that before ReLU, if given.

    x (N, H, W, C)   dy, y, dz (N, OH, OW, F)   dw (KH, KW, C, F)   db (F,)
    """
    (*_, channels, filters) = dw.shape
    bands = _bands(window, False)
    total = -(-len(x) // bands.images) * bands.per_image
    length = share(total, chunks, dy.size * (dw.size // filters))
    chunks = -(-total // length)
    positions = bands.images * bands.rows * window.out_w
    waiting = waiting_sums(length * blocks_of(positions), FEW)
    partial = aligned((chunks, dw.size), np.float32)
    biases = np.empty((total, blocks_of(positions), filters), np.float32)
    nothing = np.empty((0, 0, 0, 0), np.float32)
    parallel_for(
        _kernel_gradient, chunks, (x, dy, nothing if y is None else y),
        (partial, biases, nothing if dz is None else dz), tuple(window), tuple(bands), length,
        y is not None, dz is not None,
        scratch={
            **_places(window, bands, channels, bands.depth),
            "packed": (packed_shape(positions, filters, np.float32), np.float32),
            "zeros": ((PANEL,), np.float32),
            "sums": ((waiting * dw.size,), np.float32),
        },
    )
    sum_sums(partial, dw.reshape(-1))
    sum_sums(biases, db)


def _bands(window: Window, pool: bool) -> _Bands:
    """Return how the outputs are split; it depends on the shapes only, not on the CPU."""
    _, _, kh, kw, sh, sw, dh, dw, top, left, out_h, out_w = window
    rows = min(max(1, _POSITIONS // out_w), out_h)
    rows = -(-out_h // -(-out_h // rows))  # of nearly equal bands
    images = 1 if pool else max(1, _POSITIONS // (out_h * out_w))
    if pool:
        out_h = out_h // 2 * 2
        rows = 2 * max(1, _POOLED_POSITIONS // (2 * out_w))
    high = (window.out_h - 1) * sh + (kh - 1) * dh + 1
    wide = (out_w - 1) * sw + (kw - 1) * dw + 1
    in_place = top == left == 0 and high <= window.height and wide <= window.width
    wide = window.width if in_place else max(wide, left + window.width)
    high = window.height if in_place else (rows - 1) * sh + (kh - 1) * dh + 1
    depth = out_w * rows if sh * wide == sw * out_w else out_w
    run = kw if dw == 1 else 1
    return _Bands(rows, images, -(-out_h // rows), in_place, depth, high, wide, run)


def _places(window: Window, bands: _Bands, channels: int, depth: int) -> dict[str, Any]:
    """Return the scratch for the offsets of patches, `depth` positions apart, and of taps.

    Each list has one item more, as `simd.tile` needs. The copied rows of a band, which the offsets
    refer to, have no rows if they are read in place.
    """
    positions = bands.images * bands.rows * window.out_w
    high = 0 if bands.in_place else bands.images * bands.high
    return {
        "patches": ((-(-positions // depth) + 1,), np.int64),
        "taps": ((window.taps // bands.run + 1,), np.int64),
        "padded": ((high, bands.wide, channels), np.float32),
    }


@kernel
def _pack(panel, scratch, w, packed, turned):
    """Copy a panel of filters to `packed` (panels, KH KW C, PANEL)."""
    pack_filters(w, panel * PANEL, turned, pointer(packed, panel * PANEL * packed.shape[1]))


@kernel
def _forward(chunk, scratch, x, packed, b, y, code, window, bands, length, relu, pool):
    """Compute bands of outputs: y = b + sum over u of padded[u] w[u]."""
    patches, taps, padded, outputs = scratch
    oh, ow = window[10], window[11]
    rows, images, per_image, _, _, _, _, run = bands
    channels, filters, depth = x.shape[3], b.size, packed.shape[1]
    clear(pointer(padded, 0), padded.size)
    _find_offsets(window, bands, channels, 1, patches, taps)
    clear(pointer(outputs, 0), outputs.size)  # the lanes after the last filter
    groups = -(-x.shape[0] // images)
    for band in range(chunk * length, min(groups * per_image, (chunk + 1) * length)):
        n, first = band // per_image * images, band % per_image * rows
        some = min(images, x.shape[0] - n)
        count = some * min(rows, (oh // 2 * 2 if pool else oh) - first)
        image = _rows_of_images(x, n, some, first, count // some, padded, window, bands)
        out, line = pointer(outputs, 0), outputs.shape[1]
        if not pool:
            out, line = pointer(y, (n * oh + first) * ow * filters), filters
        for f in range(0, filters, PANEL):
            block_of_rows(image, pointer(patches, 0), 1, pointer(taps, 0),
                          pointer(packed, f * depth), PANEL, pointer(b, f), 0, pointer(out, f),
                          line, count * ow, min(PANEL, filters - f), run * channels,
                          taps.size - 1, False)
        if pool:
            at = (n * (oh // 2) + first // 2) * (ow // 2) * filters
            for f in range(0, filters, LANES):
                write_maxima(pointer(out, f), ow * line, line, count // 2, ow // 2,
                             splat(np.float32(0)), pointer(y, at + f), pointer(code, at + f),
                             ow // 2 * filters, filters, filters - f)
        elif relu:
            for e in range(count * ow * filters):
                out[e] = 0 if out[e] <= 0 else out[e]


@kernel
def _kernel_gradient(chunk, scratch, x, dy, y, partial, biases, dz, window, bands, length, relu,
                     need_dz):
    """Sum dw and db over bands of outputs: dw[u] += padded[u]' dz."""
    patches, taps, padded, packed, zeros, sums = scratch
    sw, oh, ow = window[5], window[10], window[11]
    rows, images, per_image, _, most, _, _, run = bands
    channels, filters, size = x.shape[3], dy.shape[3], partial.shape[1]
    clear(pointer(zeros, 0), zeros.size)
    clear(pointer(padded, 0), padded.size)
    clear(pointer(packed, 0), packed.size)  # the lanes after the last filter
    _find_offsets(window, bands, channels, most, patches, taps)
    dw, waiting, done = pointer(partial, chunk * size), 0, 0
    begin = chunk * length
    end = min(-(-x.shape[0] // images) * per_image, begin + length)
    for band in range(begin, end):
        n, first = band // per_image * images, band % per_image * rows
        some = min(images, x.shape[0] - n)
        count = min(rows, oh - first)
        image = _rows_of_images(x, n, some, first, count, padded, window, bands)
        at, positions = (n * oh + first) * ow * filters, some * count * ow
        _pack_gradient(pointer(dy, at), pointer(y, at if relu else 0),
                       pointer(dz, at if need_dz else 0), pointer(packed, 0),
                       pointer(biases, band * biases.shape[1] * filters), positions, filters, relu,
                       need_dz)
        for p in range(0, positions, BLOCK):  # more than one step only for a single row
            height = min(BLOCK, positions - p)
            depth = min(most, height)
            total = pointer(sums, (waiting - 1) * size) if waiting else dw
            for f in range(0, filters, PANEL):
                for t in range(taps.size - 1):
                    target = pointer(total, t * run * channels * filters + f)
                    block_of_rows(pointer(image, taps[t] + p * sw * channels), 1, sw * channels,
                                  pointer(patches, 0), pointer(packed, f * positions + p * PANEL),
                                  PANEL, pointer(zeros, 0), 0, target, filters, run * channels,
                                  min(PANEL, filters - f), depth, height // depth, done % FEW > 0)
            done += 1
            last = band + 1 == end and p + BLOCK >= positions
            if done % FEW == 0 or last:
                waiting = add_waiting(waiting + 1, -(-done // FEW), last, dw, 0, pointer(sums, 0),
                                      size, 1, size)


@helper
def _find_offsets(window, bands, channels, depth, patches, taps):
    """Write where patches, `depth` positions apart, begin in the rows of a band, and where taps."""
    _, _, _, kw, sh, sw, dh, dw, _, _, _, ow = window
    rows, _, _, _, _, high, wide, run = bands
    for i in range(patches.size):
        p = i * depth
        row = p // (rows * ow) * high + p // ow % rows * sh
        patches[i] = (row * wide + p % ow * sw) * channels
    for t in range(taps.size):
        taps[t] = (t * run // kw * dh * wide + t * run % kw * dw) * channels


@helper
def _rows_of_images(x, n, some, first, count, padded, window, bands):
    """Return the rows that `count` rows of outputs from `first` on read, of images from n on."""
    height, width, kh, _, sh, _, dh, _, top, left, _, _ = window
    _, _, _, in_place, _, high, wide, _ = bands
    channels, row = x.shape[3], first * sh - top
    if in_place:
        return pointer(x, (n * height + row) * width * channels)
    for i in range(some):
        for r in range((count - 1) * sh + (kh - 1) * dh + 1):
            target = pointer(padded, ((i * high + r) * wide + left) * channels)
            if 0 <= row + r < height:
                source = pointer(x, ((n + i) * height + row + r) * width * channels)
                copy(source, 0, target, 0, 1, width * channels)
            else:
                clear(target, width * channels)
    return pointer(padded, 0)


@helper
def _pack_gradient(dy, y, dz, packed, biases, positions, filters, relu, need_dz):
    """Pack dz into panels (panels, positions, PANEL), and sum the gradients of the bias."""
    for f in range(0, filters, LANES):
        some, first = filters - f, f // PANEL * positions * PANEL + f % PANEL
        for begin in range(0, positions, BLOCK):
            total = splat(np.float32(0))
            for p in range(begin, min(begin + BLOCK, positions)):
                at = p * filters + f
                gradient = load_some(dy, at, some)
                if relu:
                    gradient = where_positive(load_some(y, at, some), gradient)
                    if need_dz:
                        store_some(gradient, dz, at, some)
                store(gradient, packed, first + p * PANEL)
                total = add(total, gradient)
            store_some(total, biases, begin // BLOCK * filters + f, some)
