"""A fast BLAS for MLX on a Linux CPU. Import before mlx.

MLX's Linux CPU build links the reference BLAS, tens of times slower than the machine can do. It
looks `cblas_sgemm` up in the global symbol scope first, so an OpenBLAS loaded there earlier is
used instead. Nothing happens on other systems; ROME_MLX_BLAS=0 turns it off.
"""

import ctypes
import ctypes.util
import os
import platform
import sys
import warnings
from pathlib import Path

def candidates() -> list[str]:
    """OpenBLAS libraries with plain symbol names: the `cmeel-openblas` wheel's, the system's."""
    wheels = [Path(p) / "cmeel.prefix/lib/libopenblas.so.0" for p in sys.path if p]
    found = [str(path) for path in wheels if path.is_file()]
    if not found and (system := ctypes.util.find_library("openblas")):
        found.append(system)
    return found


def load() -> str | None:
    """Load an OpenBLAS for MLX where that helps; its path, or None. Never raises."""
    if platform.system() != "Linux" or os.environ.get("ROME_MLX_BLAS") == "0":
        return None
    paths = candidates()
    if paths and "mlx.core" in sys.modules:
        mx = sys.modules["mlx.core"]
        if mx.default_device() == mx.cpu:
            warnings.warn("mlx was imported before rome_mlx: importing rome_mlx first makes "
                          "matrix products about 30 times faster on this CPU", stacklevel=3)
        return None
    for path in paths:
        try:
            ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
            return path
        except OSError:
            continue
    return None


#: path of the BLAS that was loaded, or None
loaded: str | None = load()
