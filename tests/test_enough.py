"""How well moments are settled, and that their sums keep their precision."""

import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from fakes import FakeTokenizer
from samples import letters
from tiny import tiny_model

from rome_mlx.editing.key import read_keys
from rome_mlx.models.decoder import Decoder
from rome_mlx.moments import quality as enough
from rome_mlx.moments import store
from rome_mlx.moments.estimator import Moments, second_moments
from rome_mlx.moments.second_moment import SecondMoment

TOKENIZER = FakeTokenizer()


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture
def text(tmp_path):
    return letters(tmp_path, 20_000)


def counted(keys) -> SecondMoment:
    moment = SecondMoment(keys.shape[1])
    moment.add(mx.array(keys))
    return moment


# precision and memory

def test_sums_over_a_hundred_million_tokens_are_as_good_as_over_one_batch():
    """Where a float32 sum of the same products is off by more than ten times as much."""
    keys = (np.random.RandomState(0).rand(8192, 3) + 0.5).astype(np.float32)
    calls = 100_000_000 // 8192
    moment, batch, naive = SecondMoment(3), mx.array(keys), np.zeros((3, 3), np.float32)
    product = keys.T @ keys
    for _ in range(calls):
        moment.add(batch)
        naive += product
    wide = keys.astype(np.float64)
    exact = wide.T @ wide / len(wide)
    assert moment.count == calls * 8192
    assert np.abs(moment.value() / exact - 1).max() < 1e-6
    assert np.abs(moment.mean() / wide.mean(0) - 1).max() < 1e-6
    assert np.abs(naive / moment.count / exact - 1).max() > 1e-5


@pytest.mark.parametrize("dim", [1, 2, 7, 8, 9, 40, 100])
def test_stripes_cover_the_upper_triangle_of_any_width(dim):
    keys = np.random.RandomState(dim).randn(30, dim).astype(np.float32)
    moment = counted(keys)
    exact = keys.astype(np.float64).T @ keys / 30
    assert np.abs(moment.value() - exact).max() < 1e-6
    again = SecondMoment(dim, 30, moment.triangle().total(dim), moment.keys)
    assert np.abs(again.value() - exact).max() < 1e-6


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read on Linux")
def test_counting_and_saving_take_no_more_memory_than_is_said():
    """10 dim² bytes for the sums and their copy, and 10 dim² beside."""
    script = """
import re, tempfile
from pathlib import Path
import rome_mlx
import mlx.core as mx
import numpy as np
from rome_mlx.moments import quality as enough
from rome_mlx.moments import store
from rome_mlx.moments.second_moment import SecondMoment
def use(dim, directory):
    keys = mx.random.normal((512, dim))
    moment = SecondMoment(dim)
    moment.add(keys)
    np.fill_diagonal(moment.total, 1e9)
    moment.first = moment.triangle()
    moment.add(keys)
    np.fill_diagonal(moment.total, 2e9)
    assert enough.agreement(moment, np.ones((4, dim))) > 0.9
    store.write(Path(directory) / "layer-0.safetensors", moment, {})
    enough.quality(moment, {})
def memory(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
with tempfile.TemporaryDirectory() as directory:
    use(2200, directory)  # libraries and their buffers
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is forgotten
    use(2200, directory)
    print((memory("VmHWM") - before) / 2200**2)
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                         check=True)
    used = float(out.stdout)
    assert 10 < used < 20, f"{used:.1f} bytes times dim²"


# is it enough?

def test_the_agreement_of_two_halves_is_that_of_their_directions():
    generator = np.random.RandomState(0)
    mixing, probes = generator.randn(20, 20), generator.randn(5, 20)
    one, two = (generator.randn(300, 20) @ mixing + 0.3 for _ in range(2))
    moment = counted(one.astype(np.float32))
    moment.first = moment.triangle()
    moment.add(mx.array(two.astype(np.float32)))
    a, b = (np.linalg.solve(x.T @ x / 300, probes.T) for x in (one, two))
    cosines = (a * b).sum(0) / np.linalg.norm(a, axis=0) / np.linalg.norm(b, axis=0)
    assert enough.agreement(moment, probes) == pytest.approx(cosines.mean(), abs=1e-4)


def test_halves_that_are_not_positive_definite_have_no_agreement():
    keys = np.random.RandomState(0).randn(60, 20).astype(np.float32)
    moment = counted(keys[:10])
    moment.first = moment.triangle()
    moment.add(mx.array(keys[10:]))
    assert enough.agreement(moment, keys[:3]) is None


def test_quality_is_that_of_the_spectrum_and_the_mean():
    keys = np.random.RandomState(0).randn(4000, 12).astype(np.float32) * np.arange(1, 13) + 1
    quality = enough.quality(counted(keys), {})
    wide = keys.astype(np.float64)
    values = np.linalg.eigvalsh(wide.T @ wide / 4000)
    share = values / values.sum()
    assert quality.condition == pytest.approx(values[-1] / values[0], rel=1e-4)
    assert quality.effective_rank == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-5)
    mean = wide.mean(0)
    assert quality.mean_share == pytest.approx(mean @ mean / (wide**2).sum(1).mean(), rel=1e-4)
    assert quality.tokens_per_dimension == pytest.approx(4000 / 12) and not quality.thin
    equal = enough.quality(counted(np.tile(np.eye(8, dtype=np.float32), (4, 1))), {})
    assert equal.effective_rank == pytest.approx(8) and equal.condition == pytest.approx(1)
    assert equal.thin and "count 80 or more, or edit with the hyperparameter ridge" \
        in equal.advice(8)
    assert enough.quality(counted(np.ones((9, 4), np.float32)), {}).mean_share == pytest.approx(1)


def test_the_probes_are_the_subjects_keys_at_their_last_token(model):
    from rome_mlx.storage.places import read_lines

    subjects = read_lines("subjects.txt")[:64]
    expected = read_keys(Decoder(model), TOKENIZER, [(s, (0, len(s))) for s in subjects], 2).keys
    assert np.abs(enough.subject_keys(Decoder(model), TOKENIZER, 2) - expected).max() < 1e-6


def test_a_run_says_how_its_directions_settle(model, text, tmp_path):
    moments = second_moments(model, TOKENIZER, [0, 2], text, 9600, row_length=16,
                             output=tmp_path / "out")
    for layer in (0, 2):
        looks = moments.quality(layer).settling
        assert [look["tokens"] for look in looks] == [1200, 2400, 4800, 9600]
        cosines = [look["cosine"] for look in looks]
        assert 0 < cosines[0] < cosines[-1] < 1
        stored, about = store.read(store.layer_path(tmp_path / "out", layer))
        assert about["settling"] == looks and stored.first is None
        assert Moments({layer: stored}, {layer: about}).quality(layer).settling == looks


def test_until_stable_stops_when_the_directions_of_all_layers_have_settled(model, text):
    arguments = dict(layers=[0, 2], corpus=text, tokens=9600, row_length=16)
    whole = second_moments(model, TOKENIZER, **arguments)
    at_2400 = min(whole.quality(layer).settling[1]["cosine"] for layer in (0, 2))
    stopped = second_moments(model, TOKENIZER, **arguments, until_stable=at_2400 - 1e-6)
    assert {m.count for m in stopped.values()} <= {1200, 2400}
    part = second_moments(model, TOKENIZER, **{**arguments, "tokens": stopped[0].count})
    assert np.abs(stopped[2].value() - part[2].value()).max() < 1e-6
    never = second_moments(model, TOKENIZER, **arguments, until_stable=0.999999)
    assert {m.count for m in never.values()} == {9600}


def test_an_extended_run_goes_on_looking(model, text, tmp_path):
    arguments = dict(layers=[1], corpus=text, row_length=16, output=tmp_path / "out")
    first = second_moments(model, TOKENIZER, tokens=1200, **arguments).quality(1).settling
    later = second_moments(model, TOKENIZER, tokens=9600, **arguments).quality(1).settling
    assert later[: len(first)] == first
    assert [look["tokens"] for look in later[len(first):]] == [2400, 4800, 9600]


def test_on_a_terminal_progress_is_a_bar_in_tokens_with_the_time_left(
        model, text, capfd, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    second_moments(model, TOKENIZER, [0], text, 9600, row_length=16, progress=True)
    assert "9.60k/9.60k [" in (said := capfd.readouterr().err) and "token/s" in said
    assert "<00:00" in said
