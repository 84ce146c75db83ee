"""Long sequences: against the closed form, resumed, overwritten, withdrawn, and small."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeTokenizer
from samples import arrays, spd
from tiny import tiny_model

import rome_mlx as rm
from rome_mlx.editing import sequence as module
from rome_mlx.editing.least_squares import LeastSquares
from rome_mlx.editing.sequence import EditSequence
from rome_mlx.models.applied import edits_of

REQUESTS = [rm.EditRequest(f"{{}} {verb}", f"{name} {i}", target, "zz")
            for i, (name, verb, target) in enumerate(
                [("ab", "lives in", "xy"), ("c", "was", "b"), ("def", "is in", "q"),
                 ("gh", "has", "rs"), ("i", "likes", "t"), ("jk", "sees", "uv")])]
LAYERS = [0, 1]
PATHS = [f"model.layers.{layer}.mlp.down_proj" for layer in LAYERS]
MOMENTS = {layer: spd(48, layer) for layer in LAYERS}
HP = {rm.memit: {"v_num_grad_steps": 3, "update_weight": 2.0},
      rm.alphaedit: {"v_num_grad_steps": 3, "energy": 0.1, "regularization": 0.5}}
LONG = list(HP)


def sequence(model, editor=rm.memit, directory=None, **options):
    return EditSequence(model, FakeTokenizer(), editor, LAYERS, moments=MOMENTS,
                        context_templates=["{}", "q r. {}"], directory=directory,
                        **{"hyperparameters": HP[editor], **options})


def written(edit):
    return {path: (delta.a @ delta.b).T for path, delta in edit.deltas.items()}


def base(editor, layer):
    """B, and U: the equations of the method without any key, by their formulas."""
    if editor is rm.memit:
        return 2.0 * MOMENTS[layer], np.eye(48)
    values, vectors = np.linalg.eigh(MOMENTS[layer])
    inside = vectors[:, np.cumsum(values) <= 0.1 * values.sum()]
    return 0.5 * np.eye(inside.shape[1]), inside


def closed_form(editor, edit, without=()):
    """ΔW = Σ t kᵀ (B + Σ kkᵀ)⁻¹ over everything but some columns."""
    found = {}
    for layer, path in zip(LAYERS, PATHS, strict=True):
        normal, inside = base(editor, layer)
        columns = [i for i in range(edit.keys[path].shape[1]) if i not in without]
        keys = inside.T @ edit.keys[path][:, columns]
        found[path] = (edit.targets[path][:, columns] @ keys.T
                       @ np.linalg.inv(normal + keys @ keys.T) @ inside.T)
    return found


def alike(one, other, tolerance=1e-6):
    for path in PATHS:
        scale = np.abs(other[path]).max()
        np.testing.assert_allclose(one[path], other[path], atol=tolerance * scale)


def test_least_squares_that_go_on_are_those_of_all_at_once():
    random = np.random.RandomState(0)
    weight, matrix = random.randn(5, 12), spd(12)
    keys, values = random.randn(12, 9), random.randn(5, 9)
    going, now = LeastSquares(3.0 * matrix), weight
    for i in (0, 4, 7):
        k, v = keys[:, i:i + 4][:, :[4, 3, 2][(0, 4, 7).index(i)]], values[:, i:i + 4]
        v = v[:, :k.shape[1]]
        change = (v - now @ k) @ going.update(k).T
        going.add(k, v - weight @ k)
        now = now + change
        np.testing.assert_allclose(now, weight + going.change().T, atol=1e-10)
    right = (values - weight @ keys) @ keys.T
    np.testing.assert_allclose(going.change().T,
                               right @ np.linalg.inv(3.0 * matrix + keys @ keys.T), atol=1e-10)
    going.remove(keys[:, 2:3], values[:, 2:3] - weight @ keys[:, 2:3])
    rest = [i for i in range(9) if i != 2]
    right = (values[:, rest] - weight @ keys[:, rest]) @ keys[:, rest].T
    np.testing.assert_allclose(
        going.change().T,
        right @ np.linalg.inv(3.0 * matrix + keys[:, rest] @ keys[:, rest].T), atol=1e-9)
    with pytest.raises(rm.RomeError, match="nothing has been written"):
        LeastSquares(matrix).change()


@pytest.mark.parametrize("editor", LONG)
def test_what_a_sequence_carries_is_the_closed_form_of_its_keys_and_targets(editor):
    model = tiny_model("llama")
    before = arrays(model)
    with sequence(model, editor) as going:
        for i, edit in enumerate(going.write(REQUESTS, batch=2)):
            assert edit.requests == REQUESTS[2 * i: 2 * i + 2] and edit.is_applied(model)
            assert set(edit.numbers) == {"said", "likelier"} and len(edits_of(model)) == 1
        whole = going.edit()
        now = arrays(model)
    assert whole.requests == REQUESTS and all(len(k.T) == 6 for k in whole.keys.values())
    alike(written(whole), closed_form(editor, whole))
    for path, change in written(whole).items():
        np.testing.assert_allclose(now[f"{path}.weight"] - before[f"{path}.weight"], change,
                                   atol=1e-6)
    after = arrays(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("editor", LONG)
def test_the_first_batch_is_the_editors_own_edit(editor):
    with sequence(tiny_model("llama"), editor) as going:
        batch, = going.write(REQUESTS[:3], batch=3)
        alone = editor(tiny_model("llama"), FakeTokenizer(), REQUESTS[:3], LAYERS, moments=MOMENTS,
                       context_templates=["{}", "q r. {}"], hyperparameters=HP[editor])
        alike(written(batch), written(alone), 1e-9)
        alike(written(going.edit()), written(alone))


@pytest.mark.parametrize("editor", LONG)
def test_a_second_batch_is_the_editors_on_a_model_with_the_first(editor):
    """The editors protect the keys of edits applied to the model: the same equations."""
    with sequence(tiny_model("llama"), editor) as going:
        list(going.write(REQUESTS[:4], batch=2))
        total = written(going.edit())
    model, sums = tiny_model("llama"), {path: 0.0 for path in PATHS}
    for part in (REQUESTS[:2], REQUESTS[2:4]):
        edit = editor(model, FakeTokenizer(), part, LAYERS, moments=MOMENTS,
                      context_templates=["{}", "q r. {}"], hyperparameters=HP[editor])
        edit.apply(model)
        sums = {path: sums[path] + written(edit)[path] for path in PATHS}
    alike(total, sums, 1e-4)


def test_a_fact_withdrawn_is_left_out_of_the_equations():
    model = tiny_model("llama")
    with sequence(model) as going:
        list(going.write(REQUESTS, batch=2))
        whole = going.edit()
        going.withdraw(REQUESTS[3])
        less = going.edit()
        assert less.requests == [*REQUESTS[:3], *REQUESTS[4:]]
        alike(written(less), closed_form(rm.memit, whole, without=[3]))
        with pytest.raises(rm.RomeError, match="holds nothing for 'gh 3 has'"):
            going.withdraw(REQUESTS[3])
        for request in less.requests:
            going.withdraw(request)
        assert not edits_of(model)
        with pytest.raises(rm.RomeError, match="all of it was withdrawn"):
            going.edit()


def test_a_fact_that_comes_again_takes_the_place_of_what_was_written():
    again = dataclasses.replace(REQUESTS[1], prompt="{}  was", target_new="gg")
    with sequence(tiny_model("llama")) as going:
        list(going.write([*REQUESTS[:4], again], batch=2))
        whole = going.edit()
    assert whole.requests == [REQUESTS[0], *REQUESTS[2:4], again]
    assert all(keys.shape[1] == 4 for keys in whole.keys.values())
    alike(written(whole), closed_form(rm.memit, whole))


def test_with_its_old_key_in_place_a_fact_is_reached_half_way():
    """Why it leaves: the least squares of one key and two answers is between them."""
    key, old, new = np.eye(4)[:, :1], np.full((2, 1), 4.0), np.full((2, 1), 10.0)
    both, left = LeastSquares(1e-6 * np.eye(4)), LeastSquares(1e-6 * np.eye(4))
    both.add(key, old)
    both.add(key, new)
    left.add(key, old)
    left.remove(key, old)
    left.add(key, new)
    np.testing.assert_allclose(both.change().T @ key, (old + new) / 2, rtol=1e-4)
    np.testing.assert_allclose(left.change().T @ key, new, rtol=1e-4)


@pytest.mark.parametrize("name", ["memit", "alphaedit", "rome", "emmet", "ft"])
def test_a_sequence_goes_on_where_it_was_to_the_last_bit(name, tmp_path):
    editor = {"memit": rm.memit, "alphaedit": rm.alphaedit, "rome": rm.rome, "emmet": rm.emmet,
              "ft": rm.finetune}[name]
    options = {"hyperparameters": HP.get(editor, {"steps": 2} if name == "ft" else
                                         {"v_num_grad_steps": 2})}
    batch = 1 if name == "rome" else 2

    def begun(directory):
        model = tiny_model("llama")
        layers = LAYERS if editor in HP else 1
        return EditSequence(model, FakeTokenizer(), editor, layers, moments=MOMENTS,
                            context_templates=["{}", "q r. {}"], directory=directory, **options)

    with begun(tmp_path / "whole") as going:
        assert len(list(going.write(REQUESTS, batch))) == 6 // batch
        going.edit().save(tmp_path / "one")
        results = going.results
    with begun(tmp_path / "parts") as going:
        steps = going.write(REQUESTS, batch)
        next(steps), next(steps)
    with begun(tmp_path / "parts") as going:
        assert len(going.results) == 2
        assert len(list(going.write(REQUESTS, batch))) == 6 // batch - 2
        going.edit().save(tmp_path / "other")
        assert [one["said"] for one in going.results] == [one["said"] for one in results]
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "other" / file.name).read_bytes()
    kept = len(list((tmp_path / "whole").glob("*.safetensors")))
    assert kept == (6 // batch if editor in HP else 2)


def test_a_directory_refuses_other_requests_and_other_settings(tmp_path):
    with sequence(tiny_model("llama"), directory=tmp_path / "s") as going:
        list(going.write(REQUESTS[:4], batch=2))
    with sequence(tiny_model("llama"), directory=tmp_path / "s") as going:
        with pytest.raises(rm.RomeError, match=r"request 1 is 'c 1 was' → 'b', not 'gh 3 has'"):
            list(going.write([REQUESTS[0], REQUESTS[3]], batch=2))
        assert list(going.write(REQUESTS[:4], batch=2)) == []
        more, = going.write(REQUESTS[4:], batch=2)  # what follows is new
        assert more.requests == REQUESTS[4:]
    with pytest.raises(rm.RomeError, match="other settings.*seed"):
        sequence(tiny_model("llama"), directory=tmp_path / "s", seed=1)
    with pytest.raises(rm.RomeError, match="another model"):
        sequence(tiny_model("llama", seed=1), directory=tmp_path / "s")
    with pytest.raises(rm.RomeError, match="method"):
        sequence(tiny_model("llama"), rm.alphaedit, directory=tmp_path / "s")


def test_a_request_given_twice_in_a_batch_is_one_fact_also_when_read_back(tmp_path):
    twice = [REQUESTS[0], REQUESTS[0], REQUESTS[1],
             dataclasses.replace(REQUESTS[1], target_true="y")]
    with sequence(tiny_model("llama"), directory=tmp_path / "s") as going:
        list(going.write([*twice, REQUESTS[2]], batch=4))
        one = going.edit()
    with sequence(tiny_model("llama"), directory=tmp_path / "s") as going:
        other = going.edit()
    assert len(one.requests) == 3 and one.requests == other.requests
    alike(written(one), written(other), 1e-12)
    alike(written(one), closed_form(rm.memit, one))


def test_a_sequence_stopped_within_a_batch_says_so_and_goes_on_from_its_directory(
        tmp_path, monkeypatch):
    with sequence(tiny_model("llama"), directory=tmp_path / "s") as going:
        steps = going.write(REQUESTS, batch=2)
        next(steps)
        with monkeypatch.context() as patch:
            patch.setattr(module, "efficacy", lambda *arguments: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                next(steps)
        for act in (going.edit, lambda: next(going.write(REQUESTS, 2)),
                    lambda: going.withdraw(REQUESTS[0])):
            with pytest.raises(rm.RomeError, match="interrupted within a batch"):
                act()
    with sequence(tiny_model("llama"), directory=tmp_path / "s") as going:
        assert len(list(going.write(REQUESTS, batch=2))) == 2
        alike(written(going.edit()), closed_form(rm.memit, going.edit()))


def test_withdrawals_are_kept_too(tmp_path):
    with sequence(tiny_model("llama"), directory=tmp_path / "s") as going:
        list(going.write(REQUESTS[:4], batch=2))
        going.withdraw(REQUESTS[0])
        one = going.edit()
    with sequence(tiny_model("llama"), directory=tmp_path / "s") as going:
        other = going.edit()
    assert one.requests == other.requests == REQUESTS[1:4]
    alike(written(one), written(other), 1e-12)


@pytest.mark.parametrize("harm", ["arrays", "json", "gone"])
def test_a_damaged_batch_is_named(harm, tmp_path):
    with sequence(tiny_model("llama"), directory=tmp_path / "s") as going:
        list(going.write(REQUESTS[:4], batch=2))
    if harm == "json":
        (tmp_path / "s/batch_00001.json").write_text('{"requests": [{}], "withdrawn": null}')
    elif harm == "gone":
        (tmp_path / "s/batch_00001.safetensors").unlink()
    else:
        (tmp_path / "s/batch_00001.safetensors").write_bytes(b"{}")
    with pytest.raises(rm.RomeError, match=r"(batch_0000)?1.* damaged.*remove it"):
        sequence(tiny_model("llama"), directory=tmp_path / "s")


def test_what_is_no_editor_is_refused_and_rank_one_methods_cannot_withdraw():
    with pytest.raises(rm.RomeError, match=r"'sorted' is no editor.*rm\.memit"):
        EditSequence(tiny_model("llama"), FakeTokenizer(), sorted)
    with EditSequence(tiny_model("llama"), FakeTokenizer(), rm.rome, 1, moments=MOMENTS,
                      context_templates=["{}"], hyperparameters={"v_num_grad_steps": 2}) as going:
        with pytest.raises(rm.RomeError, match="one request a call"):
            next(going.write(REQUESTS, batch=2))
        list(going.write(REQUESTS[:1]))
        with pytest.raises(rm.RomeError, match="only memit and alphaedit"):
            going.withdraw(REQUESTS[0])


@pytest.mark.parametrize("editor", [rm.memit, rm.rome])
def test_the_disturbance_is_the_mean_square_of_what_changes_for_keys(editor):
    model, random = tiny_model("llama"), np.random.RandomState(0)
    keys = random.randn(48, 200)
    options = {"hyperparameters": HP.get(editor, {"v_num_grad_steps": 2})}
    with EditSequence(model, FakeTokenizer(), editor, 1, moments={1: keys @ keys.T / 200},
                      context_templates=["{}"], **options) as going:
        assert going.disturbance() == {}
        list(going.write(REQUESTS[:3]))
        change, = written(going.edit()).values()
        (path, found), = going.disturbance().items()
    weight = np.array(model.layers[1].mlp.down_proj.weight, np.float64)
    energy = (np.linalg.norm(change @ keys, axis=0)**2).mean()
    assert path == PATHS[1] and found["energy"] == pytest.approx(energy)
    assert found["share"] == pytest.approx(
        energy / (np.linalg.norm(weight @ keys, axis=0)**2).mean())


def test_edits_that_were_on_the_model_are_protected_and_stay():
    model = tiny_model("llama")
    first = rm.memit(model, FakeTokenizer(), REQUESTS[:1], LAYERS, moments=MOMENTS,
                     context_templates=["{}"], hyperparameters=HP[rm.memit])
    with first.applied(model):
        with sequence(model) as going:
            list(going.write(REQUESTS[1:3], batch=2))
            known = going.edit()
        assert edits_of(model) == [first]
    stranger = dataclasses.replace(first, keys={}, targets={})
    with stranger.applied(model), sequence(model) as going:
        list(going.write(REQUESTS[1:3], batch=2))
        forgotten = going.edit()
    for path in PATHS:
        key = first.keys[path][:, 0]
        assert np.linalg.norm(written(known)[path] @ key) < np.linalg.norm(
            written(forgotten)[path] @ key)


def test_the_change_that_is_carried_has_a_bounded_rank():
    requests = [rm.EditRequest("{} is", f"n{i}", "xyz"[i % 3]) for i in range(70)]
    with EditSequence(tiny_model("llama"), FakeTokenizer(), rm.emmet, 1, moments=MOMENTS,
                      context_templates=["{}"], hyperparameters={"v_num_grad_steps": 1}) as going:
        for _ in going.write(requests, batch=10):
            delta, = going._carried.deltas.values()
            assert delta.rank <= 32


@pytest.mark.parametrize("editor", LONG)
def test_a_few_facts_are_a_change_of_one_rank_each(editor):
    with sequence(tiny_model("llama"), editor) as going:
        list(going.write(REQUESTS[:4], batch=2))
        assert {delta.rank for delta in going.edit().deltas.values()} == {4}
        going.withdraw(REQUESTS[1])
        edit = going.edit()
    assert {delta.rank for delta in edit.deltas.values()} == {3}
    alike(written(edit), closed_form(editor, edit))


KILLED = """
    import sys, time
    sys.path[:0] = {tests!r}
    from test_sequence import REQUESTS, sequence, tiny_model
    with sequence(tiny_model("llama"), directory=sys.argv[1]) as going:
        print("ready", flush=True)
        for edit in going.write(REQUESTS * 5, batch=3):
            print("batch", flush=True)
        going.edit().save(sys.argv[2])
"""


@pytest.mark.slow
def test_five_kills_and_the_same_edit(tmp_path):
    script = textwrap.dedent(KILLED.format(tests=[str(Path(__file__).parent),
                                                  str(Path(__file__).parent.parent)]))
    arguments = [sys.executable, "-c", script]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([*arguments, tmp_path / "whole", tmp_path / "one"], check=True,
                   env=environment, stdout=subprocess.DEVNULL)
    for kill in range(5):
        with subprocess.Popen([*arguments, tmp_path / "killed", tmp_path / "other"], text=True,
                              env=environment, stdout=subprocess.PIPE) as process:
            for _ in range(1 + kill % 3):  # after the start, and one or two batches
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "other").exists()
    subprocess.run([*arguments, tmp_path / "killed", tmp_path / "other"], check=True,
                   env=environment, stdout=subprocess.DEVNULL)
    for name in ("adapters.safetensors", "keys.safetensors", "edit.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    assert len(json.loads((tmp_path / "one/edit.json").read_text())["requests"]) == 6
