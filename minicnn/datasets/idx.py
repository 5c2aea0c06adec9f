"""Reader of IDX files, the format of MNIST, raw or compressed with gzip.

An IDX file is two zero bytes, one byte for the element type, one byte for the number of
dimensions, each dimension as a big-endian uint32, then the elements in C order, big-endian.
"""

import gzip
import hashlib
import math
import os
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from minicnn.core import checks
from minicnn.core.files import open_regular

_ELEMENT_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CHUNK = 1 << 20  # bytes
_ALWAYS_ALLOWED = 1 << 30  # uncompressed bytes
_MAX_RATIO = 100  # of the uncompressed to the compressed size of larger files; MNIST has 5
_Stream = IO[bytes] | gzip.GzipFile


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an IDX file, raw or compressed with gzip.

    Memory is allocated for the bytes that the file contains, not for the size in its header. A file
    whose header declares more than 1 GiB and more than a hundred times the size of the file is
    refused as a gzip bomb.

    Parameters
    ----------
    path : str or path-like
        The file. Its first bytes tell whether it is compressed, not its suffix.

    Returns
    -------
    ndarray
        Writable, in C order and native byte order; uint8, int8, int16, int32, float32 or float64.

    Raises
    ------
    OSError
        If there is no such file, or the path is not that of a regular file.
    ValueError
        If the file is not a complete, valid IDX file.

    References
    ----------
    Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", section "The
    IDX file format", http://yann.lecun.com/exdb/mnist/

    Examples
    --------
    >>> import struct, tempfile
    >>> from pathlib import Path
    >>> from minicnn.datasets import read_idx
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "labels-idx1-ubyte"
    ...     _ = path.write_bytes(struct.pack(">II", 2049, 3) + bytes([7, 2, 1]))
    ...     read_idx(path)
    array([7, 2, 1], dtype=uint8)
    """
    return decode_file(checks.path(path, "path"))


def decode_file(path: Path, sha256: str | None = None) -> np.ndarray:
    """Read an IDX file; check the SHA-256 of its raw bytes, if given."""
    try:
        with _open(path) as stream:
            header, dtype, shape = _read_header(stream)
            most = max(_ALWAYS_ALLOWED, _MAX_RATIO * path.stat().st_size)
            data = _read_elements(stream, dtype, shape, most)
        if sha256 and (found := hashlib.sha256(header + data).hexdigest()) != sha256:
            raise ValueError(f"expected raw bytes of SHA-256 {sha256}, got {found}")
        return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)
    except (EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        raise ValueError(
            f"{path} is damaged or no IDX file: {error}; download it again, or reinstall minicnn"
        ) from error


def _open(path: Path) -> _Stream:
    with open_regular(path, follow=True) as stream:
        is_gzip = stream.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if is_gzip else path.open("rb")


def _read_header(stream: _Stream) -> tuple[bytes, np.dtype, tuple[int, ...]]:
    start = stream.read(4)
    if len(start) < 4 or start[:2] != b"\0\0":
        raise ValueError(f"expected two zero bytes first, got {start!r}")
    code, ndim = start[2:]
    if code not in _ELEMENT_TYPES:
        raise ValueError(
            f"expected an element type among {', '.join(map(hex, _ELEMENT_TYPES))}, got {hex(code)}"
        )
    sizes = stream.read(4 * ndim)
    shape = tuple(np.frombuffer(sizes, ">u4", ndim).tolist())
    return start + sizes, np.dtype(_ELEMENT_TYPES[code]), shape


def _read_elements(
    stream: _Stream, dtype: np.dtype, shape: tuple[int, ...], most: int
) -> bytearray:
    expected = math.prod(shape) * dtype.itemsize
    if expected > most:
        raise ValueError(f"expected at most {most} bytes from its size, got {expected} in {shape}")
    data = bytearray()
    # Read one byte more than expected: this detects a file that is too long, stops a gzip bomb,
    # and reaches the end of a valid gzip file, where its checksum is compared.
    while chunk := stream.read(min(_CHUNK, expected + 1 - len(data))):
        data += chunk
    if len(data) != expected:
        got = "more" if len(data) > expected else len(data)
        raise ValueError(f"expected {expected} bytes for {dtype.name} elements {shape}, got {got}")
    return data
