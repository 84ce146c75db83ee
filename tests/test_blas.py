"""The BLAS shim: faster, and never in the way."""

import os
import platform
import subprocess
import sys
import warnings

import mlx.core as mx
import pytest

from rome_mlx.accel import blas

# The best of several: other work on the machine can only make a product slower.
_TIMED = """
import rome_mlx.accel.blas, time
import mlx.core as mx
a = mx.random.normal((1024, 1024))
mx.eval(a @ a)
times = []
for _ in range(5):
    start = time.perf_counter()
    mx.eval(a @ a)
    times.append(time.perf_counter() - start)
print(min(times))
"""


def run(code, **environment):
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                         env={**os.environ, **environment})
    assert out.returncode == 0, out.stderr
    return out.stdout.strip(), out.stderr


applies = pytest.mark.skipif(
    platform.system() != "Linux" or mx.default_device() != mx.cpu
    or not next(blas.candidates(), None),
    reason="only for MLX on a Linux CPU with an OpenBLAS at hand")


@applies
def test_matrix_products_are_several_times_faster():
    slow, fast = (float(run(_TIMED, ROME_MLX_BLAS=value)[0]) for value in ("0", ""))
    assert slow > 5 * fast


# how relink looks at libmlx
_LATE = """
import mlx.core as mx
import ctypes
from pathlib import Path
import numpy as np
from rome_mlx.accel import relink
mlx = str(Path(mx.__file__).parent / "lib/libmlx.so")
linked = [s for s in relink.slots(mlx) if s.name.startswith("cblas_") or s.name == "spotrf_"]
before = {slot: slot.value for slot in linked}
"""
_OFF = {"ROME_MLX_BLAS": "0"}  # of `rome_mlx` itself, so that a test can do it


@applies
@pytest.mark.parametrize("first", ["import rome_mlx", "import mlx.core"])
def test_mlx_calls_openblas_whatever_was_imported_first_and_computes_the_same(first):
    out, err = run(first + _LATE + """
from rome_mlx.accel import blas
print({Path(slot.target[0]).name for slot in linked}, blas.status())
a, b = (mx.random.normal((70, 300), key=mx.random.key(i)) for i in (0, 1))
exact = np.array(a, np.float64) @ np.array(b, np.float64).T
np.testing.assert_allclose(np.array(a @ b.T), exact, atol=1e-4)
square = (exact @ exact.T + 1000 * np.eye(70)).astype(np.float32)
lower = mx.linalg.cholesky(mx.array(square), stream=mx.cpu)
np.testing.assert_allclose(np.array(lower), np.linalg.cholesky(square), rtol=1e-4, atol=1e-3)
""")
    assert "openblas" in out.split("}")[0] and "'," not in out and "} OpenBLAS" in out
    assert not err


@applies
def test_where_mlx_cannot_be_led_elsewhere_it_says_so_once_and_works():
    out, err = run("""
import platform, mlx.core as mx
platform.machine = lambda: "a machine of another kind"
import rome_mlx, rome_mlx.accel.blas as b
print(b.status(), (mx.ones((3, 3)) @ mx.ones((3, 3))).sum().item())""")
    assert err.count("30 times faster") == 1
    assert "could not be led elsewhere" in out and out.endswith("27.0")


@applies
@pytest.mark.parametrize("odd", [
    "done = relink.relink(mlx, ctypes.CDLL('libm.so.6'))",  # a BLAS without its functions
    "relink._multiplies = lambda at: False; done = relink.relink(mlx, openblas)",
    "relink._REFERENCE = ('libother',); done = relink.relink(mlx, openblas)",
    "done = relink.relink('libm.so.6', openblas)",  # a library that multiplies nothing
], ids=["no such functions", "wrong product", "another library is there", "another library"])
def test_what_is_not_as_expected_is_left_alone(odd):
    out, _ = run(_LATE + f"""
from rome_mlx.accel import blas
openblas = blas.Blas(*next(blas.candidates()))
{odd}
print(done, all(slot.value == before[slot] for slot in linked), len(linked))""", **_OFF)
    assert out == "False True 4"


@applies
def test_a_table_that_is_read_only_is_so_afterwards():
    out, _ = run(_LATE + """
from rome_mlx.accel import blas
for slot in linked:
    relink._protect(slot.at, relink._PROT_READ)
done = relink.relink(mlx, blas.Blas(*next(blas.candidates())))
print(done, any(relink._writable(slot.at) for slot in linked),
      all(slot.value != before[slot] for slot in linked))
for slot in linked:  # beside the table there are data
    relink._protect(slot.at, relink._PROT_READ | relink._PROT_WRITE)""", **_OFF)
    assert out == "True False True"


def test_the_environment_turns_it_off():
    code = "import rome_mlx.accel.blas as b; print(b.loaded, '|', b.status())"
    out, _ = run(code, ROME_MLX_BLAS="0")
    assert out.startswith("None |")


def test_an_unloadable_library_is_no_error(monkeypatch):
    monkeypatch.setattr(blas, "candidates", lambda: iter([("/nowhere/libopenblas.so", "")]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert blas.load() is None
