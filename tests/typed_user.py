"""What a user writes, for mypy: the public names and what they return."""

import numpy as np

import rome_mlx as rm


def whole_way(path: str) -> float:
    model, tokenizer = rm.load(path, dtype="float32")
    fact = rm.Fact("{} is located in the city of", "The Eiffel Tower")
    trace: rm.Trace = rm.trace(model, tokenizer, fact, kind="mlp", samples=4)
    scores: np.ndarray = trace.scores
    decisive: int | None = trace.decisive_layer
    layer: int = 5 if decisive is None else decisive
    effects: rm.AverageEffects = rm.average_effects(model, tokenizer, [fact], ("mlp",))
    effects.plot("effects.png")
    moments: rm.Moments = rm.second_moments(model, tokenizer, [layer], "self", 1000)
    request = rm.EditRequest(fact.prompt, fact.subject, "Rome")
    edit: rm.Edit = rm.rome(model, tokenizer, request, layer=layer, moments=moments,
                            hyperparameters=rm.Hyperparameters(v_lr=0.1))
    many: rm.Edit = rm.memit(model, tokenizer, [request], layers=[layer], moments=moments)
    with rm.stack([edit, many]).applied(model):
        check: rm.Verification = rm.verify(model, tokenizer, edit)
    edit.save("edits/eiffel")
    again: rm.Edit = rm.load_edit("edits/eiffel")
    left: np.ndarray = again.left_vector
    with rm.intercept(model, keep=["model.layers.8.mlp"]) as seen:
        model(tokenizer.encode("Hello"))
    seen["model.layers.8.mlp"]
    recovery: dict[int, float] = rm.activation_patching(
        model, tokenizer, clean_text="a", corrupted_text="b", component="mlp")
    result = rm.locate_then_edit(model, tokenizer, request, paraphrases=["Where is it?"])
    result.report("report.html")
    try:
        rm.read_facts("facts.json")
    except rm.RomeError as error:
        print(error)
    return float(scores.max() + left.max()) + recovery[0] + check.prompts[0].target_new_after
