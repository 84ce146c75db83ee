"""A fast BLAS for MLX on a Linux CPU.

MLX's Linux CPU build links the reference BLAS, tens of times slower than the machine can do. It
looks `cblas_sgemm` up in the global symbol scope first, so an OpenBLAS loaded there earlier is
used instead; where mlx was imported before, its calls are led there (`relink`). Nothing happens
on other systems; ROME_MLX_BLAS=0 turns it off.
"""

import contextlib
import ctypes
import ctypes.util
import os
import platform
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from ..storage.places import cache_directory


def candidates() -> list[str]:
    """OpenBLAS libraries with plain symbol names: the `cmeel-openblas` wheel's, the system's."""
    return list(_candidates())


def _candidates() -> Iterator[str]:
    for path in filter(None, sys.path):
        if (wheel := Path(path) / "cmeel.prefix/lib/libopenblas.so.0").is_file():
            yield str(wheel)
    if system := ctypes.util.find_library("openblas"):  # asks other programs: tenths of a second
        yield system


def load() -> str | None:
    """Load an OpenBLAS for MLX where that helps; its path, or None. Never raises."""
    if platform.system() != "Linux" or os.environ.get("ROME_MLX_BLAS") == "0":
        return None
    early = "mlx.core" not in sys.modules
    with contextlib.suppress(OSError):
        for path in _candidates():
            with contextlib.suppress(Exception):  # whatever it is, MLX works without
                library = _open(path)
                if early or _relink(library):
                    _follow_load(library)
                    return path
        if not early and candidates():
            _warn_too_late()
    return None


def _open(path: str) -> ctypes.CDLL:
    with contextlib.suppress(OSError):
        return ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    _provide_gfortran()
    return ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)


def _relink(library: ctypes.CDLL) -> bool:
    from .relink import relink

    return relink(str(Path(sys.modules["mlx.core"].__file__).parent / "lib/libmlx.so"), library)


def _follow_load(library: ctypes.CDLL) -> None:
    from .threads import follow

    with contextlib.suppress(Exception):
        follow(library)


def _warn_too_late() -> None:
    mx = sys.modules["mlx.core"]
    if mx.default_device() == mx.cpu:
        warnings.warn("mlx was imported before rome_mlx, and could not be given a fast BLAS any "
                      "more: importing rome_mlx first makes matrix products about 30 times faster "
                      "on this CPU", stacklevel=5)


def status() -> str:
    """One line for people: what multiplies MLX's matrices on the CPU, and how to do better."""
    if platform.system() != "Linux":
        return "the system's BLAS"
    if loaded:
        return f"OpenBLAS, {loaded}"
    if os.environ.get("ROME_MLX_BLAS") == "0":
        return "MLX's own, slow: ROME_MLX_BLAS=0 turns OpenBLAS off"
    if candidates():
        return ("MLX's own, slow: import rome_mlx before mlx, with a cache directory that can be "
                "written")
    return "MLX's own, slow: pip install cmeel-openblas"


def _provide_gfortran() -> None:
    """Load a libgfortran.so.5, which the OpenBLAS wheel needs and does not carry.

    MLX's and numpy's wheels carry it under a name with a hash in it. The loader goes by the
    library's own name, so a copy with the plain name is kept in the cache directory.
    """
    hashed = r"libgfortran-[0-9a-f-]+\.so\.5\.0\.0"
    libraries = [file for p in sys.path if p for package in ("mlx_cpu.libs", "numpy.libs")
                 for file in sorted(Path(p, package).glob("libgfortran-*.so.5.0.0"))
                 if re.fullmatch(hashed, file.name)]
    if not libraries:
        raise OSError("no libgfortran among the installed wheels")
    source = libraries[0]
    for quadmath in source.parent.glob("libquadmath-*.so.0.0.0"):
        ctypes.CDLL(str(quadmath), mode=ctypes.RTLD_GLOBAL)
    target = cache_directory() / "lib" / source.stem / "libgfortran.so.5"
    # a damaged copy would take the process down with it
    if not target.is_file() or target.stat().st_size != source.stat().st_size:
        target.parent.mkdir(parents=True, exist_ok=True)
        name = source.name.encode() + b"\0"
        plain = b"libgfortran.so.5".ljust(len(name), b"\0")
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
            file.write(source.read_bytes().replace(name, plain))
        os.replace(file.name, target)
    ctypes.CDLL(str(target), mode=ctypes.RTLD_GLOBAL)


#: path of the BLAS that was loaded, or None
loaded: str | None = load()
