"""mlx-lm's own server over one model, whose requests name the edits that they want.

mlx-lm batches the requests of one "model" and keeps their prompts' caches under its key, since keys
and values are of the weights that made them. Here that key is the set of edits. Edits are put on
and taken back on the thread that generates, where mlx-lm would load another model: no batch runs
then.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from http.server import ThreadingHTTPServer
from pathlib import Path

import mlx.core as mx
from mlx_lm import server
from mlx_lm.models.cache import LRUPromptCache, make_prompt_cache

from ..editing.edit import Edit
from ..editing.saved import load_edit
from ..errors import RomeError
from ..models.decoder import Decoder
from ..models.loading import describe


def named_edits(directories: Sequence[str]) -> dict[str, Edit]:
    """{name of the directory: the edit saved in it}. Raises RomeError for two of one name."""
    found: dict[str, Edit] = {}
    for directory in directories:
        name = Path(os.path.abspath(directory)).name
        if name in found:
            raise RomeError(f"two edits are called {name!r}, and requests name them by their "
                            "directories; rename one")
        found[name] = load_edit(directory)
    return found


def serve(model, tokenizer, edits: dict[str, Edit], *, host: str = "127.0.0.1", port: int = 8080,
          seed: int = 0) -> None:
    """Answer requests until Ctrl-C; then the model is as it was. Prints a line once it listens.

    edits: {name: edit}, none of them applied; port: 0 for any that is free; seed: of what is
    sampled. Raises RomeError where an edit cannot be applied to the model, or the port is taken.
    """
    provider = EditProvider(model, tokenizer, edits)
    generator = _Generator(provider, LRUPromptCache(provider.cli_args.prompt_cache_size), seed)
    try:
        server._run_http_server(host, port, generator, server_class=_Server,
                                handler_class=_Handler)
    except OSError as error:
        raise RomeError(f"cannot listen at {host}, port {port} ({error.strerror or error}); give "
                        "another --host or --port") from error
    finally:
        generator.stop_and_join()


class EditProvider(server.ModelProvider):
    """One loaded model, and its edits. `model_key` is the names of the edits that are on it."""

    def __init__(self, model, tokenizer, edits: dict[str, Edit]):
        super().__init__(server_settings())
        for edit in edits.values():  # every check, once: a switch repeats none of them
            with edit.applied(model):
                pass
        mx.eval(model)  # what is not computed yet, no other thread may compute
        self.model, self.tokenizer, self.edits = model, tokenizer, edits
        self.name = describe(model, tokenizer)["path"]
        self.model_key: tuple[str, ...] = ()
        self.is_batchable = all(hasattr(cache, "merge") for cache in make_prompt_cache(model))

    def load_default(self) -> None:
        """The model is there already."""

    def load(self, model_path, adapter_path=(), draft_model_path=None):
        """(model, tokenizer), with the edits whose names stand in the adapter's place and no
        others. mlx-lm calls it on the thread that generates, while no batch runs."""
        if adapter_path != self.model_key:
            self._take_back()
            for name in adapter_path:
                self.edits[name].apply(self.model, force=True)
                self.model_key += (name,)
        return self.model, self.tokenizer

    def reset(self) -> None:
        """Leave the model as it came."""
        self._take_back()
        super().reset()

    def wanted(self, request: dict) -> tuple[str, ...]:
        """The names of the edits that a request asks for, in the order of the command line.
        Raises RomeError for what this server does not have."""
        for field in ("adapters", "draft_model"):
            if request.get(field) is not None:
                raise RomeError(f"this server takes no {field!r}; name its \"edits\": "
                                f"{self._there()}")
        if (model := request.get("model", "default_model")) not in ("default_model", self.name):
            raise RomeError(f"this server has one model, {self.name!r}, and not {model!r}; leave "
                            "\"model\" out")
        names = [] if request.get("edits") is None else request["edits"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise RomeError(f"\"edits\" is {json.dumps(names)}; give a list of "
                            f"names; there are {self._there()}")
        if unknown := [name for name in names if name not in self.edits]:
            raise RomeError(f"there is no edit {unknown[0]!r}; there are {self._there()}")
        return tuple(name for name in self.edits if name in names)

    def _there(self) -> str:
        return ", ".join(map(repr, self.edits))

    def _take_back(self) -> None:
        while self.model_key:
            self.edits[self.model_key[-1]].revert(self.model)
            self.model_key = self.model_key[:-1]


class _Generator(server.ResponseGenerator):
    def __init__(self, provider: EditProvider, prompt_cache: LRUPromptCache, seed: int):
        self._seed = seed
        super().__init__(provider, prompt_cache)

    def _generate(self) -> None:
        mx.random.seed(self._seed)
        try:
            with Decoder(self.model_provider.model).fast():
                super()._generate()
        finally:
            mx.clear_streams()  # else MLX now and then aborts the process when it ends


class _Handler(server.APIHandler):
    def validate_model_parameters(self) -> None:
        """mlx-lm's checks, and the edits: what is raised here is answered with status 400."""
        super().validate_model_parameters()
        self.adapter = self.response_generator.model_provider.wanted(self.body)

    def handle_models_request(self) -> None:
        """The one model, and the edits there are."""
        provider = self.response_generator.model_provider
        self._set_completion_headers(200)
        self.end_headers()
        self.wfile.write(json.dumps({"object": "list", "data": [
            {"id": provider.name, "object": "model", "created": self.created,
             "edits": list(provider.edits)}]}).encode())


class _Server(ThreadingHTTPServer):
    def server_activate(self) -> None:
        super().server_activate()
        host, port = self.server_address[:2]
        print(f"Listening on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)


def server_settings() -> argparse.Namespace:
    """What `mlx_lm.server` sets without flags, by its own command line, which is stopped where it
    would run."""
    run, argv, given = server.run, sys.argv, []
    server.run = lambda host, port, provider: given.append(provider.cli_args)
    sys.argv = ["mlx_lm.server", "--log-level", "WARNING"]
    try:
        server.main()
    finally:
        server.run, sys.argv = run, argv
    return given[0]
