"""Let a loaded libmlx call another BLAS.

Python binds every call of a library when it loads it, so a BLAS that is loaded later goes unseen.
But libmlx calls through a table of addresses, and its relocations say which entry is whose. The
entries that lead into the reference BLAS and LAPACK are led into the other library.
"""

import ctypes
import mmap
import platform
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

#: machine -> ELF's numbers of the relocations that hold a function's address (GLOB_DAT, JUMP_SLOT)
_ADDRESSES = {"x86_64": (6, 7), "aarch64": (1025, 1026)}  # on aarch64 not tried
_REFERENCE = ("libblas", "libcblas", "liblapack")  # how the files are called that may be replaced
_PLTRELSZ, _STRTAB, _SYMTAB, _RELA, _RELASZ, _JMPREL = 2, 5, 6, 7, 8, 23  # of the dynamic section
_RTLD_NOLOAD, _RTLD_DI_LINKMAP = 4, 2
_PROT_READ, _PROT_WRITE = 1, 2

_process = ctypes.CDLL(None, use_errno=True)


class _LinkMap(ctypes.Structure):
    _fields_ = (("base", ctypes.c_size_t), ("name", ctypes.c_char_p), ("dynamic", ctypes.c_size_t))


class _Symbol(ctypes.Structure):
    _fields_ = (("file", ctypes.c_char_p), ("base", ctypes.c_void_p),
                ("name", ctypes.c_char_p), ("address", ctypes.c_void_p))


class Slot(NamedTuple):
    """An entry of a library's table: the function's name, and where its address is stored."""

    name: str
    at: int

    @property
    def value(self) -> int:
        return ctypes.c_uint64.from_address(self.at).value

    @property
    def target(self) -> tuple[str, str]:
        """(file, function) that the entry leads to; empty where nobody knows."""
        symbol = _Symbol()
        if not _process.dladdr(ctypes.c_void_p(self.value), ctypes.byref(symbol)):
            return "", ""
        return (symbol.file or b"").decode(), (symbol.name or b"").decode()

    def write(self, value: int) -> None:
        """Store an address, on a page that is made writable for it where it is not."""
        read_only = not _writable(self.at)
        if read_only:
            _protect(self.at, _PROT_READ | _PROT_WRITE)
        ctypes.c_uint64.from_address(self.at).value = value
        if read_only:
            _protect(self.at, _PROT_READ)


def relink(library: str, blas) -> bool:
    """Whether the loaded `library` now multiplies by `blas`, whose attributes are its functions.

    Only entries that lead to the reference library's function of the same name are changed, and
    all are put back where a product comes out wrong. Raises OSError where the library is not
    loaded, or its table cannot be read or written.
    """
    changes = []
    for slot in slots(library):
        file, name = slot.target
        replaced = Path(file).name.startswith(_REFERENCE) and name == slot.name
        if replaced and (function := getattr(blas, slot.name, None)):
            changes.append((slot, slot.value, ctypes.cast(function, ctypes.c_void_p).value))
    products = [slot for slot, _, _ in changes if slot.name == "cblas_sgemm"]
    done = False
    try:
        for slot, _, new in changes if products else ():
            slot.write(new)
        done = bool(products) and all(_multiplies(slot.value) for slot in products)
    finally:
        for slot, old, _ in () if done else changes:
            slot.write(old)
    return done


def slots(library: str) -> Iterator[Slot]:
    """The entries of a loaded library's table for functions of other libraries.

    Raises OSError where it is not loaded, or on a processor whose tables are not known.
    """
    if platform.machine() not in _ADDRESSES:
        raise OSError(f"the tables of {platform.machine()} are not known")
    handle = ctypes.CDLL(library, mode=_RTLD_NOLOAD)._handle
    found = ctypes.POINTER(_LinkMap)()
    if _process.dlinfo(ctypes.c_void_p(handle), _RTLD_DI_LINKMAP, ctypes.byref(found)):
        raise OSError(f"{library} has no link map")
    base, dynamic = found.contents.base, dict(_dynamic(found.contents.dynamic))
    if not {_STRTAB, _SYMTAB} <= dynamic.keys():
        raise OSError(f"{library} has no symbols")
    at = {tag: value if value >= base else base + value for tag, value in dynamic.items()}
    for table, size in ((_RELA, _RELASZ), (_JMPREL, _PLTRELSZ)):
        entries = ctypes.string_at(at[table], dynamic[size]) if table in dynamic else b""
        for offset, info, _ in struct.iter_unpack("QQq", entries):
            if info & 0xFFFFFFFF in _ADDRESSES[platform.machine()]:
                name, _, _, section = struct.unpack(
                    "IBBH", ctypes.string_at(at[_SYMTAB] + 24 * (info >> 32), 8))
                if section == 0:  # defined elsewhere
                    yield Slot(ctypes.string_at(at[_STRTAB] + name).decode(), base + offset)


def _dynamic(at: int) -> Iterator[tuple[int, int]]:
    """(tag, value) of a dynamic section's entries."""
    while (entry := struct.unpack("qQ", ctypes.string_at(at, 16)))[0]:
        yield entry
        at += 16


def _writable(address: int) -> bool:
    with open("/proc/self/maps", encoding="utf-8") as file:
        for line in file:
            span, permissions = line.split()[:2]
            begin, end = (int(part, 16) for part in span.split("-"))
            if begin <= address < end:
                return "w" in permissions
    raise OSError(f"nothing is mapped at {address:#x}")


def _protect(address: int, protection: int) -> None:
    page = ctypes.c_void_p(address & -mmap.PAGESIZE)
    if _process.mprotect(page, ctypes.c_size_t(mmap.PAGESIZE), protection):
        raise OSError(ctypes.get_errno(), "mprotect refused")


def _multiplies(sgemm: int) -> bool:
    """Whether the cblas_sgemm at an address multiplies two matrices rightly."""
    matrix, number, size = ctypes.c_float * 4, ctypes.c_float, ctypes.c_int
    function = ctypes.CFUNCTYPE(None, size, size, size, size, size, size, number, matrix, size,
                                matrix, size, number, matrix, size)
    a, b, out = matrix(1, 2, 3, 4), matrix(5, 6, 7, 8), matrix()
    by_rows, plain = 101, 111
    function(sgemm)(by_rows, plain, plain, 2, 2, 2, 1, a, 2, b, 2, 0, out, 2)
    return list(out) == [19, 22, 43, 50]
