"""A fast BLAS for MLX on a Linux CPU.

MLX's Linux CPU build links the reference BLAS, tens of times slower than the machine can do. Its
calls are led elsewhere (`relink`): to MKL where that is installed, which is faster for few rows on
Intel's processors, else to the OpenBLAS that scipy's wheel brings, which chooses its code by the
processor, or to the system's. Nothing happens on other systems; ROME_MLX_BLAS=0 turns it off.
"""

import contextlib
import ctypes
import ctypes.util
import importlib.util
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path


class Blas:
    """A loaded library: its functions are attributes, by their plain names.

    prefix: what scipy put before the names of its OpenBLAS's functions.
    """

    def __init__(self, path: str, prefix: str = ""):
        self.path, self._prefix = path, prefix
        self.name = "MKL" if "mkl" in Path(path).name else "OpenBLAS"
        if self.name == "MKL":  # its threads, which it looks for by this name
            ctypes.CDLL(str(Path(path).with_name("libiomp5.so")), mode=ctypes.RTLD_GLOBAL)
        self._library = ctypes.CDLL(path)

    def __getattr__(self, name: str):
        return getattr(self._library, self._prefix + name)

    @property
    def threads(self) -> int:
        return (self.MKL_Get_Max_Threads if self.name == "MKL" else
                self.openblas_get_num_threads)()

    @threads.setter
    def threads(self, count: int) -> None:
        (self.MKL_Set_Num_Threads if self.name == "MKL" else self.openblas_set_num_threads)(count)


def candidates() -> Iterator[tuple[str, str]]:
    """(path, what function names begin with) of the BLAS libraries that are here."""
    for path in sorted(Path(sys.prefix, "lib").glob("libmkl_rt.so*")):
        yield str(path), ""
    scipy = importlib.util.find_spec("scipy")
    for package in (scipy.submodule_search_locations or ()) if scipy else ():
        for path in sorted(Path(package).parent.glob("scipy.libs/libscipy_openblas-*.so*")):
            yield str(path), "scipy_"
    if system := ctypes.util.find_library("openblas"):  # asks other programs: tenths of a second
        yield system, ""


def load() -> Blas | None:
    """Give MLX a fast BLAS where that helps, whether or not mlx was imported before; None where
    nothing was done. Never raises."""
    if platform.system() != "Linux" or os.environ.get("ROME_MLX_BLAS") == "0":
        return None
    with contextlib.suppress(Exception):  # whatever it is, MLX works without
        import mlx.core as mx

        for path, prefix in candidates():
            with contextlib.suppress(Exception):
                blas = Blas(path, prefix)
                if _relink(blas):
                    _follow_load(blas)
                    return blas
        if mx.default_device() == mx.cpu:
            warnings.warn(f"{status()}; matrix products could be about 30 times faster",
                          stacklevel=4)
    return None


def _relink(blas: Blas) -> bool:
    import mlx.core

    from .relink import relink

    return relink(str(Path(mlx.core.__file__).parent / "lib/libmlx.so"), blas)


def _follow_load(blas: Blas) -> None:
    from .threads import follow

    with contextlib.suppress(Exception):
        follow(blas)


def status() -> str:
    """One line for people: what multiplies MLX's matrices on the CPU, and how to do better."""
    if platform.system() != "Linux":
        return "the system's BLAS"
    if loaded:
        return f"{loaded.name}, {loaded.path}"
    if os.environ.get("ROME_MLX_BLAS") == "0":
        return "MLX's own, slow: ROME_MLX_BLAS=0 turns others off"
    if next(candidates(), None):
        return "MLX's own, slow: its calls could not be led elsewhere"
    return "MLX's own, slow: there is no OpenBLAS; pip install --force-reinstall scipy brings one"


#: the BLAS that MLX was given, or None
loaded: Blas | None = None
loaded = load()
