import mlx.core as mx
import numpy as np
import pytest
from matplotlib.image import imread
from mlx.utils import tree_flatten
from test_average import Letters
from tiny import tiny_model

from rome_mlx.errors import RomeError
from rome_mlx.models.architectures import SUPPORTED
from rome_mlx.tracing.patching import activation_patching

KINDS = ["llama", "gpt2", "gemma3_text"]
TEXTS = dict(clean_text="Rome is in", corrupted_text="Oslo is by")


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return tiny_model(request.param, seed=5), Letters()


def logits_of(model, text):
    return np.array(model(mx.array([[ord(letter) for letter in text]]))[0, -1], np.float64)


def answers(model):
    """A good and a bad answer that the two texts tell apart."""
    difference = logits_of(model, TEXTS["clean_text"]) - logits_of(model, TEXTS["corrupted_text"])
    letters = range(ord("a"), ord("z") + 1)
    return {"answer": chr(max(letters, key=lambda i: difference[i])),
            "corrupted_answer": chr(min(letters, key=lambda i: difference[i]))}


def patch(model, **options):
    given = {**TEXTS, "measure": "logit_difference", **answers(model[0]), **options}
    return activation_patching(*model, **given)


def test_patching_all_of_a_blocks_output_brings_everything_back(model):
    recovery = patch(model, component="output")
    assert list(recovery) == [0, 1, 2, 3]
    np.testing.assert_allclose(list(recovery.values()), 100, atol=0.05)


@pytest.mark.parametrize("kind", sorted(SUPPORTED))
def test_every_model_type_can_be_patched(kind):
    model = tiny_model(kind, seed=5), Letters()
    whole = patch(model, component="output")
    np.testing.assert_allclose(list(whole.values()), 100, atol=0.05)
    last = patch(model, component="output", positions=[8, 9], layers=[3])
    assert last[3] == pytest.approx(100, abs=0.05)
    for component in ("mlp", "self_attn"):
        part = patch(model, component=component, positions=[8, 9], layers=[1])[1]
        assert np.isfinite(part) and part not in (0, 100)


def test_the_last_layers_output_decides_at_the_last_position_alone(model):
    last = patch(model, component="output", positions=-1, layers=[3])
    others = patch(model, component="output", positions=list(range(9)), layers=[3])
    assert last[3] == pytest.approx(100, abs=0.05)
    assert others[3] == pytest.approx(0, abs=0.05)


def test_recovery_is_what_a_hand_written_patch_gives(model):
    net = model[0]
    layer, position = 2, 3
    blocks = net.model.h if hasattr(net.model, "h") else net.model.layers
    named = answers(net)
    good, bad = (ord(named[k]) for k in ("answer", "corrupted_answer"))
    mlp = blocks[layer].mlp
    kept = {}

    class Patched(type(mlp)):
        def __call__(self, x):
            out = super().__call__(x)
            if "value" not in kept:
                kept["value"] = out[:, position]
                return out
            return mx.concatenate([out[:, :position], kept["value"][:, None],
                                   out[:, position + 1:]], axis=1)

    def score(logits):
        return logits[good] - logits[bad]

    corrupted = score(logits_of(net, TEXTS["corrupted_text"]))
    original, mlp.__class__ = type(mlp), Patched
    try:
        clean = score(logits_of(net, TEXTS["clean_text"]))
        patched = score(logits_of(net, TEXTS["corrupted_text"]))
    finally:
        mlp.__class__ = original
    recovery = patch(model, component="mlp", positions=[position], layers=[layer])
    expected = 100 * (patched - corrupted) / (clean - corrupted)
    assert recovery[layer] == pytest.approx(expected, abs=0.05)


def test_a_module_path_and_its_name_give_the_same_and_the_model_stays(model):
    before = dict(tree_flatten(model[0].parameters()))
    path = "attn" if hasattr(model[0].model, "h") else "self_attn"
    assert patch(model, component=path) == patch(model, component="self_attn")
    after = dict(tree_flatten(model[0].parameters()))
    assert all(after[name] is before[name] for name in before)


def test_negative_positions_count_from_the_end(model):
    assert patch(model, positions=-1, layers=[3]) == patch(model, positions=[9], layers=[3])


def test_texts_of_different_length_are_refused_or_aligned_from_the_end(model):
    longer = dict(clean_text="in Rome is in")
    with pytest.raises(RomeError, match="13 tokens, the corrupted one 10"):
        patch(model, **longer)
    recovery = patch(model, **longer, align="end", component="output", layers=[3], positions=-1)
    assert recovery[3] == pytest.approx(100, abs=0.05)


@pytest.mark.parametrize("bad, says", [
    (dict(corrupted_text="Rome is in"), "cannot be told apart"),
    (dict(component="mlp.none"), "no module"), (dict(layers=[4]), "layers 0 to 3"),
    (dict(positions=[10]), "not within both texts"), (dict(positions=[]), "not within"),
    (dict(measure="loss"), "unknown"), (dict(align="start"), "unknown"),
    (dict(answer=" "), "empty")])
def test_what_cannot_be_patched_is_refused(model, bad, says):
    with pytest.raises(RomeError, match=says):
        patch(model, **bad)


def test_the_recoveries_are_drawn(model, tmp_path):
    patch(model, plot=str(tmp_path / "recovery.png"))
    assert imread(tmp_path / "recovery.png").shape[1] == 900
