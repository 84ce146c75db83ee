"""MEMIT of three facts on the default model, with the second moments that come with it."""

import numpy as np
from samples import arrays

import rome_mlx as rm
from rome_mlx.models.probabilities import target_probabilities

REQUESTS = [rm.EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome"),
            rm.EditRequest("The mother tongue of {} is", "Danielle Darrieux", "English"),
            rm.EditRequest("{} was developed by", "Windows 95", "Nintendo")]


def test_three_facts_are_written_and_another_stays(default_model):
    model, tokenizer = default_model
    before = arrays(model)
    edit = rm.memit(model, tokenizer, REQUESTS, [4, 5, 6, 8],
                    hyperparameters={"update_weight": 200.0})
    after = arrays(model)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)

    asked = [(request.text, request.target_new) for request in REQUESTS]
    neighbor = [("The Louvre is located in the city of", "Paris")]
    assert max(target_probabilities(model, tokenizer, asked)) < 0.1
    with edit.applied(model):
        written = target_probabilities(model, tokenizer, asked)
        assert target_probabilities(model, tokenizer, neighbor)[0] > 0.5
    assert min(written) > 0.9, written
