"""The packed matrix product: C = S + A B, by tiles of 6 rows and two vectors of columns.

The tile is what the registers hold: 12 accumulators, two vectors of B, one element of A in every
lane. Its inner loop over k does 12 fused multiply-adds for 8 loads, which keeps both multipliers
of a processor with AVX2 busy.

* B is packed beforehand into *panels*: 64 bytes of columns, so that the inner loop reads one
  unbroken run of memory. The last panel is filled up with zeros.
* A is read where it lies, through two strides: A and its transpose are the same to `multiply`.
* S, where the sums start, is also read through two strides: the bias (row stride 0), C itself (to
  accumulate), or one zero (both strides 0).

Every element of C is one chain of multiply-adds in the order of k. So it has the same bits wherever
the matrices are cut.

The scheme is that of K. Goto and R. van de Geijn, "Anatomy of High-Performance Matrix
Multiplication", ACM TOMS 34(3), 2008.
"""

from numba.extending import register_jitable

from minicnn.kernels.jit import helper
from minicnn.kernels.simd import broadcast, fma, lanes, load, pointer, store, transpose

ROWS = 6  # of a tile
PANEL_BYTES = 64  # columns of a tile: two vectors
DEPTH = 256  # of the part of a panel that is used while it lies in the first-level cache
EDGE = ROWS * PANEL_BYTES  # elements of scratch, at most, for a tile over the edge of C


@register_jitable  # called from Python too
def round_up(size, multiple):
    """Return the least multiple of `multiple` that is not below `size`."""
    return (size + multiple - 1) // multiple * multiple


@helper
def pack(b, b_row, b_col, k, n, packed):
    """Copy B (k, n), read through two strides, into panels.

    packed (panels, k, 64 bytes), zeros behind the last column. The rows are the outer loop, so that
    a wide B is read in runs as long as it has; one that lies transposed is read a square at a time.
    """
    size = lanes(b)
    width = 2 * size
    whole = n // width * width  # columns of panels that are full
    squares = k // size * size if b_row == 1 else 0  # rows that are packed as such
    for j in range(0, whole, width):
        for p in range(0, squares, size):
            source, target = pointer(b, p + j * b_col), pointer(packed, j * k + p * width)
            transpose(source, b_col, target, width)
            transpose(pointer(source, size * b_col), b_col, pointer(target, size), width)
    runs = whole if b_col == 1 else 0  # columns that are packed by vectors
    for p in range(squares, k):
        source, target = pointer(b, p * b_row), pointer(packed, p * width)
        for j in range(0, runs, width):
            store(load(source, j), target, j * k)
            store(load(source, j + size), target, j * k + size)
        for j in range(runs, whole):
            target[j // width * width * k + j % width] = source[j * b_col]
    for p in range(k if whole < n else 0):  # the last panel
        source, target = pointer(b, p * b_row), pointer(packed, whole * k + p * width)
        for c in range(width):
            target[c] = source[(whole + c) * b_col] if whole + c < n else 0


@helper
def multiply(a, a_row, a_col, packed, s, s_row, s_col, c, c_row, m, n, k, edge):
    """C (m, n) = S (m, n) + A (m, k) B (k, n).

    Every matrix is a pointer to its first element and the strides of its rows and columns in
    elements; B comes packed in panels; C has contiguous rows; S has contiguous panels (a bias has
    row stride 0, a panel of zeros has both strides 0). `edge` is scratch of EDGE elements.
    """
    width = 2 * lanes(c)
    for p in range(0, max(k, 1), DEPTH):
        depth = min(DEPTH, k - p)  # of panel that stays in the first-level cache
        for j in range(0, n, width):
            columns = min(width, n - j)
            panel = pointer(packed, j * k + p * width)
            for i in range(0, m, ROWS):
                rows = min(ROWS, m - i)
                start, start_row = pointer(s, i * s_row + j * s_col), s_row
                target, target_row = pointer(c, i * c_row + j), c_row
                over_edge = rows < ROWS or columns < width
                if over_edge:  # computed whole in scratch, then cut
                    copy(start, start_row, edge, width, rows, columns)
                    start, start_row, target, target_row = edge, width, edge, width
                tile(pointer(a, i * a_row + p * a_col), a_row, a_col, rows, panel,
                     start, start_row, target, target_row, depth)
                if over_edge:
                    copy(edge, width, pointer(c, i * c_row + j), c_row, rows, columns)
        s, s_row, s_col = c, c_row, 1  # what follows adds to what is there


@helper
def copy(source, source_row, target, target_row, rows, columns):
    """Copy a matrix whose rows are contiguous."""
    for r in range(rows):
        for c in range(columns):
            target[r * target_row + c] = source[r * source_row + c]


@helper
def tile(a, a_row, a_col, rows, b, s, s_row, c, c_row, depth):
    """Six rows and two vectors of C: C = S + A B over `depth`.

    Where A has fewer rows, its last one stands for those behind it.
    """
    size = lanes(c)
    row1, row2, row3 = min(1, rows - 1) * a_row, min(2, rows - 1) * a_row, min(3, rows - 1) * a_row
    row4, row5 = min(4, rows - 1) * a_row, min(5, rows - 1) * a_row
    c00, c01 = load(s, 0), load(s, size)
    c10, c11 = load(s, s_row), load(s, s_row + size)
    c20, c21 = load(s, 2 * s_row), load(s, 2 * s_row + size)
    c30, c31 = load(s, 3 * s_row), load(s, 3 * s_row + size)
    c40, c41 = load(s, 4 * s_row), load(s, 4 * s_row + size)
    c50, c51 = load(s, 5 * s_row), load(s, 5 * s_row + size)
    for _ in range(depth):
        b0, b1 = load(b, 0), load(b, size)
        a0 = broadcast(a, 0)
        c00, c01 = fma(a0, b0, c00), fma(a0, b1, c01)
        a1 = broadcast(a, row1)
        c10, c11 = fma(a1, b0, c10), fma(a1, b1, c11)
        a2 = broadcast(a, row2)
        c20, c21 = fma(a2, b0, c20), fma(a2, b1, c21)
        a3 = broadcast(a, row3)
        c30, c31 = fma(a3, b0, c30), fma(a3, b1, c31)
        a4 = broadcast(a, row4)
        c40, c41 = fma(a4, b0, c40), fma(a4, b1, c41)
        a5 = broadcast(a, row5)
        c50, c51 = fma(a5, b0, c50), fma(a5, b1, c51)
        a = pointer(a, a_col)
        b = pointer(b, 2 * size)
    store(c00, c, 0)
    store(c01, c, size)
    store(c10, c, c_row)
    store(c11, c, c_row + size)
    store(c20, c, 2 * c_row)
    store(c21, c, 2 * c_row + size)
    store(c30, c, 3 * c_row)
    store(c31, c, 3 * c_row + size)
    store(c40, c, 4 * c_row)
    store(c41, c, 4 * c_row + size)
    store(c50, c, 5 * c_row)
    store(c51, c, 5 * c_row + size)
