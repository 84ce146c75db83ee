"""Say what rome-mlx would work with here: device, BLAS, model, moments; what is missing, with the
command that mends it. Status 0 when nothing is missing, else 1.

  rome-mlx doctor
  rome-mlx doctor --model mlx-community/Llama-3.2-1B-4bit
"""

import os
import platform
import shlex
import tempfile
import time
from functools import cache

from ..errors import RomeError
from .common import add_model_arguments, check_file, load_model, write_json

_SIZE = 1024  # of the matrices that are multiplied to see how fast the device is


def add_arguments(parser) -> None:
    parser.add_argument("--json", metavar="FILE", help="write what was found")
    add_model_arguments(parser)


def run(args) -> int:
    check_file(args.json)
    found, missing = {"versions": _versions()}, []
    for look in (_cache, _device, _model):
        look(found, missing, args)
    for name, value in found.items():
        for line in value if isinstance(value, list) else [value]:
            print(f"{name:9} {line}")
            name = ""
    for what, command in missing:
        print(f"\nMissing   {what}\n  {command}")
    if not missing:
        print("\nNothing is missing.")
    write_json(args.json, {**found, "missing": [
        {"what": what, "command": command} for what, command in missing]})
    return 1 if missing else 0


def _versions() -> str:
    from ..models.loading import versions

    return (", ".join(f"{name} {number}" for name, number in versions().items())
            + f", {platform.system()} {platform.machine()}")


def _device(found: dict, missing: list, args) -> None:
    import mlx.core as mx

    from ..accel import blas

    gpu = mx.default_device() == mx.gpu
    name = mx.device_info().get("device_name", "")
    found["device"] = f"{'GPU' if gpu else 'CPU'} {name}, {_gflops():.0f} GFLOP/s in float32"
    error = _product_error()
    found["float32"] = (f"products are right to {error:.0e}" if error < 1e-5 else
                        f"products are off by {error:.0e}, cut to TF32's 11 bits: unset "
                        "MLX_ENABLE_TF32")
    found["dtype"] = ("as stored" if gpu else "float32") + " unless --dtype says otherwise"
    if gpu:
        return
    found["BLAS"] = [blas.status(), *_threads()]
    if platform.system() == "Linux" and blas.loaded is None:
        missing.append(("a fast BLAS: without one, matrix products are about 30 times slower",
                        "unset ROME_MLX_BLAS" if os.environ.get("ROME_MLX_BLAS") == "0"
                        else "pip install --force-reinstall scipy"))


@cache
def _gflops() -> float:
    """How fast a large matrix product is here."""
    import mlx.core as mx

    a = mx.random.normal((_SIZE, _SIZE))
    mx.eval(a @ a)
    began = time.perf_counter()
    mx.eval(a @ a)
    return 2e-9 * _SIZE**3 / (time.perf_counter() - began)


def _product_error() -> float:
    """Of a float32 matrix product, relative to float64's."""
    import mlx.core as mx
    import numpy as np

    a, b = np.random.RandomState(0).standard_normal((2, 256, 256)).astype(np.float32)
    exact = a.astype(np.float64) @ b
    return float(np.linalg.norm(np.array(mx.array(a) @ mx.array(b)) - exact)
                 / np.linalg.norm(exact))


def _threads() -> list[str]:
    """What OpenBLAS's threads do, where it is OpenBLAS."""
    if platform.system() != "Linux":
        return []
    processors = len(os.sched_getaffinity(0))
    if threads := os.environ.get("OPENBLAS_NUM_THREADS"):
        return [f"threads: {threads}, as OPENBLAS_NUM_THREADS says, on {processors} processors"]
    return [f"threads: up to {processors}, fewer while other processes are busy"]


def _cache(found: dict, missing: list, args) -> None:
    from ..storage.places import cache_directory

    path = cache_directory()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
        size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        found["cache"] = f"{path}, {size / 1e6:.0f} MB"
    except OSError as error:
        found["cache"] = f"{path} ({error.strerror})"
        missing.append(("a cache that can be written", "export ROME_MLX_CACHE=DIRECTORY"))


def _model(found: dict, missing: list, args) -> None:
    from ..models.loading import INSTALL_DEFAULT, describe

    try:
        model, tokenizer = load_model(args)
    except (RomeError, OSError) as error:
        found["model"] = str(error)
        missing.append(("the model", INSTALL_DEFAULT if "not installed" in str(error) else
                        "rome-mlx doctor --model DIRECTORY, a .gguf file or a hub id"))
        return
    from ..models.decoder import Decoder

    decoder = Decoder(model)
    about = describe(model, tokenizer)
    layers = len(decoder.layers)
    found["model"] = [str(about["path"]),
                      f"{about['type']}, {layers} layers of {decoder.dim}, {about['dtype']}"]
    _moments(found, missing, args, decoder, tokenizer)


def _calibrated(decoder) -> str:
    """What was found by calibrating this model, or what it would cost."""
    from ..calibration.calibrate import expected_seconds
    from ..editing.calibrated import stored_calibration
    from ..editing.hyperparameters import preset_name

    if found := stored_calibration(decoder):
        held = found["held_out"]
        shares = ", ".join(f"{name.upper()} {held[name]['mean']:.0f}"
                           for name in ("es", "ps", "ns"))
        return (f"found by calibration; on {held['records']} facts that chose nothing {shares} of "
                f"{held['ns_unedited']:.0f}")
    minutes = expected_seconds(decoder, _gflops()) / 60
    shipped = preset_name(decoder)
    return (f"{f'{shipped}, from the package' if shipped else 'none of its own, not calibrated'}; "
            f"rome-mlx calibrate takes some {minutes:.0f} min, and moments")


def _moments(found: dict, missing: list, args, decoder, tokenizer) -> None:
    from ..editing.layer_choice import layer_to_edit, profile_decision
    from ..editing.methods import ROME
    from ..moments.lookup import at_hand
    from ..moments.store import read_about
    from ..view.layers import sentences

    lines = []
    for layer, path in at_hand(decoder, tokenizer, decoder.dense_layers).items():
        about = read_about(path)
        lines.append(f"layer {layer}: {about['count']:,} tokens of {about['corpus']}")
    choice = layer_to_edit(decoder, ROME)
    layer = choice.layer
    model = f" --model {shlex.quote(args.model)}" if args.model else ""
    found["moments"] = lines or ["none yet"]
    found["preset"] = _calibrated(decoder)
    decision = profile_decision(decoder)
    found["layers"] = [*([] if decision else ["Decisive layer: no profile; rome-mlx locate makes "
                                              "one."]), *sentences(decision, choice)]
    if not lines:
        missing.append(("second moments; rome-mlx edit makes them by itself, in some minutes",
                        f"rome-mlx moments --layers {layer} --corpus wikipedia --tokens 100000 "
                        f"--output moments{model}"))
