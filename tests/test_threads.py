"""The BLAS's threads: as many as other processes leave room for."""

import ctypes
import os
import subprocess
import sys

import mlx.core as mx
import pytest
from test_blas import applies, run

from rome_mlx.accel import threads
from rome_mlx.accel.threads import Load, load, spare

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc/stat")
START = Load(100.0, 50.0, 10.0)


def after(passed: float, own: float, others: float) -> Load:
    return Load(START.passed + passed, START.busy + own + others, START.own + own)


@pytest.fixture
def four_processors(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)


@pytest.mark.parametrize("own, others, expected", [
    (0.8, 0.0, 4), (0.0, 0.0, 4), (0.8, 0.05, 4), (0.4, 0.4, 2), (0.2, 0.2, 3), (0.2, 0.6, 1),
    (0.0, 0.8, 1), (0.9, -0.1, 4)])
def test_threads_are_the_processors_that_others_leave(four_processors, own, others, expected):
    assert spare(START, after(0.8, own, others), most=4) == expected  # 0.2 s of four processors


def test_there_are_never_more_threads_than_at_the_beginning(four_processors):
    assert spare(START, after(0.8, 0.4, 0.0), most=2) == 2


def test_where_the_system_tells_nothing_all_threads_stay(four_processors):
    assert spare(Load(0, 0, 1.0), Load(0, 0, 1.2), most=4) == 4


def test_fewer_threads_at_once_and_more_when_there_was_room_for_a_while(four_processors,
                                                                        monkeypatch):
    quiet, busy = (0.4, 0.0), (0.4, 0.4)
    loads, at = [], START
    for own, others in (quiet, busy, quiet, busy, quiet, quiet, quiet, quiet):
        at = Load(at.passed + 0.8, at.busy + own + others, at.own + own)
        loads.append(at)
    chosen = []  # at every look

    def look() -> Load:
        if len(chosen) == len(loads):
            raise OSError  # ends it
        chosen.append(None)
        return loads[len(chosen) - 1]

    monkeypatch.setattr(threads, "load", look)
    monkeypatch.setattr(threads.time, "sleep", lambda seconds: None)
    threads._follow(lambda count: chosen.__setitem__(-1, count), 4, START)
    assert chosen == [None, 2, None, None, None, None, 4, None]


@on_linux
def test_the_load_counts_this_process_and_all_others():
    before = load()
    subprocess.run([sys.executable, "-c", "while __import__('time').process_time() < 0.5: pass"],
                   check=True)
    passed, busy, own = (new - old for new, old in zip(load(), before, strict=True))
    assert min(passed, busy) > 0.3 and own < 0.3


@applies
@pytest.mark.parametrize("environment, follows", [({}, True), ({"OMP_NUM_THREADS": "2"}, False)])
def test_the_threads_follow_unless_the_user_has_set_them(environment, follows, monkeypatch):
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if os.cpu_count() == 1:
        pytest.skip("there is one processor")
    out, _ = run("import rome_mlx, threading\n"
                 "print([t.name for t in threading.enumerate() if t.daemon])", **environment)
    assert out == ("['rome-mlx-load']" if follows else "[]")


@applies
def test_beside_processes_on_every_processor_one_thread_is_left(monkeypatch):
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    spin = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(spin) for _ in os.sched_getaffinity(0)]
    try:
        out, _ = run("import rome_mlx, time; from rome_mlx.accel import blas\n"
                     "time.sleep(2); print(blas.loaded.threads)")
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert out == "1"


def core_of(library) -> str:
    """Whose code OpenBLAS chose."""
    name = library.openblas_get_corename
    name.restype = ctypes.c_char_p
    return name().decode()


@applies
def test_products_are_the_same_bits_with_as_many_threads_and_but_rounded_with_others():
    """OpenBLAS's code for Haswell alone was seen to round otherwise with another number of them."""
    from rome_mlx.accel import blas

    library, found = blas.loaded, []
    most = library.threads
    a, b = (mx.random.normal(shape, key=mx.random.key(0)) for shape in ((77, 576), (1536, 576)))
    try:
        for count in (1, os.cpu_count(), 1, os.cpu_count()):
            library.threads = count
            out = a @ b.T
            mx.eval(out)
            found.append(out)
    finally:
        library.threads = most
    one, many = found[:2]
    if library.name != "OpenBLAS" or core_of(library) != "Haswell":
        assert mx.array_equal(one, many)
    assert mx.array_equal(one, found[2]) and mx.array_equal(many, found[3])
    assert mx.abs(one - many).max() <= 2e-6 * mx.abs(one).max()
