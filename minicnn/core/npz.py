"""Read and write .npz files with a checksum; files to read may come from anybody."""

import contextlib
import hashlib
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from minicnn.core.files import open_regular, replacing

_SEAL = 64  # bytes: a SHA-256 in hexadecimal
_CHUNK = 1 << 20  # bytes
_RECORD = 22  # bytes: the last record of a zip archive, without its comment


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name; the comment of the zip archive is the SHA-256 of the bytes before."""
    with replacing(path) as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    _write_array(member, np.asarray(array, order="C"))
        file.seek(-2, os.SEEK_END)  # the last field says how long the comment is
        file.write(_SEAL.to_bytes(2, "little"))
        file.write(_digest(file, file.tell()))


def _write_array(member: IO[bytes], array: np.ndarray) -> None:
    """Write an array in the format of `np.savez`, without the two copies that this makes."""
    np.lib.format.write_array_header_1_0(member, np.lib.format.header_data_from_array_1_0(array))
    member.write(array.reshape(-1).view(np.uint8).data)


class Member(NamedTuple):
    """An array in a file; only its header has been read."""

    stream: IO[bytes]
    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype

    def read(self) -> np.ndarray:
        """Return the array; reading it in chunks avoids a second copy in memory."""
        array = np.empty(self.shape, self.dtype, order="F" if self.is_fortran else "C")
        data = array.reshape(-1, order="A").view(np.uint8)
        for start in range(0, data.size, _CHUNK):
            data[start : start + _CHUNK] = np.frombuffer(self.stream.read(_CHUNK), np.uint8)
        return array


def read_npz(
    path: str | Path,
    choose: Callable[[Mapping[str, Member]], Iterable[str]] = list,
    sealed: bool = False,
    follow: bool = True,
) -> dict[str, np.ndarray]:
    """Return the arrays of an untrusted file by name.

    Nothing is unpickled or decompressed, and no array is larger than its bytes in the file.

    Parameters
    ----------
    path : str or Path
    choose : callable
        Called with all headers before any array is read; returns the names to read.
    sealed : bool
        Whether the file must have a checksum.
    follow : bool
        Whether the path may be a symbolic link.

    Raises
    ------
    ValueError
        If the file is damaged, is not an .npz file of plain arrays, or has no checksum but must.
    """
    with open_regular(Path(path), follow=follow) as file:
        with _naming(path):
            members = _members(file, sealed)
        names = choose(members)
        with _naming(path):
            return {name: members[name].read() for name in names}


@contextlib.contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Turn every error that the zip and array readers raise for damaged bytes into one."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path} is not a complete .npz file of plain arrays ({error})") from error


def _digest(file: IO[bytes], size: int) -> bytes:
    """Return the SHA-256 of the first bytes of a file, in hexadecimal."""
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(min(_CHUNK, size)):
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest().encode()


def _members(file: IO[bytes], sealed: bool) -> dict[str, Member]:
    """Compare a file with its checksum and read the headers of its arrays."""
    archive = zipfile.ZipFile(file)
    size = os.fstat(file.fileno()).st_size
    if not _ends_as_it_says(file, len(archive.comment)):
        raise ValueError("its end, with the checksum, is damaged or cut off")
    if (sealed or archive.comment) and archive.comment != _digest(file, size - _SEAL):
        raise ValueError("its bytes are not those of the checksum at its end")
    infos = archive.infolist()
    is_stored = all(i.compress_type == 0 and i.compress_size == i.file_size for i in infos)
    if not is_stored or sum(info.file_size for info in infos) > size:
        raise ValueError("it is compressed, or claims more than it holds; write it with np.savez")
    members = {}
    for info in infos:
        stream = archive.open(info)
        version = np.lib.format.read_magic(stream)
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        bytes_left = info.file_size - stream.tell()
        is_plain = version == (1, 0) and dtype.kind in "biufU"
        if not is_plain or math.prod(shape) * dtype.itemsize != bytes_left:
            raise ValueError(f"{info.filename} is not a plain array of {bytes_left} bytes")
        members[info.filename.removesuffix(".npy")] = Member(stream, shape, is_fortran, dtype)
    return members


def _ends_as_it_says(file: IO[bytes], comment: int) -> bool:
    """Whether the last bytes of an archive are its last record and the comment, the checksum.

    zipfile also accepts a comment that is too short, and bytes after it.
    """
    file.seek(-_RECORD - comment, os.SEEK_END)
    record = file.read(_RECORD)
    is_record = record.startswith(b"PK\5\6")
    return is_record and int.from_bytes(record[-2:], "little") == comment
