"""The numbers of the ROME authors' own code on the default model (tests/reference)."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

DIRECTORY = Path(__file__).with_name("reference")

#: docs/checked.md's table "Is it ROME?": the largest differences measured
CLAIMED = {"traces": 9e-6, "left vector": 1.1e-12, "right vector": 1e-7, "after the edit": 2e-4,
           "second moments": 4e-7}
#: what a test lets pass, for other machines' rounding
TOLERANCE = {name: 10 * difference for name, difference in CLAIMED.items()}


def read(name: str) -> dict:
    return json.loads((DIRECTORY / name).read_text("utf-8"))


def second_moment(layer: int) -> np.ndarray:
    """C of a layer, (1536, 1536) float64."""
    upper = load_file(DIRECTORY / f"second_moment_layer_{layer}.safetensors")["upper"]
    dim = int(np.sqrt(2 * len(upper)))  # of dim (dim + 1) / 2 numbers
    out = np.zeros((dim, dim))
    out[np.triu_indices(dim)] = upper
    return out + np.triu(out, 1).T
