"""A fast BLAS for MLX on a Linux CPU. Import before mlx.

MLX's Linux CPU build links the reference BLAS, tens of times slower than the machine can do. It
looks `cblas_sgemm` up in the global symbol scope first, so an OpenBLAS loaded there earlier is
used instead. Nothing happens on other systems; ROME_MLX_BLAS=0 turns it off.
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
from pathlib import Path

from ..storage.places import cache_directory


def candidates() -> list[str]:
    """OpenBLAS libraries with plain symbol names: the `cmeel-openblas` wheel's, the system's."""
    wheels = [Path(p) / "cmeel.prefix/lib/libopenblas.so.0" for p in sys.path if p]
    found = [str(path) for path in wheels if path.is_file()]
    if system := ctypes.util.find_library("openblas"):
        found.append(system)
    return found


def load() -> str | None:
    """Load an OpenBLAS for MLX where that helps; its path, or None. Never raises."""
    if platform.system() != "Linux" or os.environ.get("ROME_MLX_BLAS") == "0":
        return None
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: there is no home directory
        paths = candidates()
        if "mlx.core" in sys.modules:
            _warn_too_late(paths)
            return None
        for path in paths:
            for prepare in (lambda: None, _provide_gfortran):
                with contextlib.suppress(OSError):
                    prepare()
                    ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
                    return path
    return None


def _warn_too_late(paths: list[str]) -> None:
    mx = sys.modules["mlx.core"]
    if paths and mx.default_device() == mx.cpu:
        warnings.warn("mlx was imported before rome_mlx: importing rome_mlx first makes "
                      "matrix products about 30 times faster on this CPU", stacklevel=4)


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
