"""Work shared out by `mlx.launch`: every rank does its part, and all have all of it in the end."""

import json

import mlx.core as mx
import numpy as np


def gathered(group, mine: dict[int, object]) -> dict[int, object]:
    """Every rank's values on every rank, sent as JSON bytes padded to the longest."""
    if group.size() == 1:
        return mine
    data = np.frombuffer(json.dumps(mine).encode(), np.uint8)
    lengths = np.array(mx.distributed.all_gather(mx.array([len(data)]), stream=mx.cpu))
    padded = np.zeros((1, lengths.max()), np.uint8)
    padded[0, :len(data)] = data
    rows = np.array(mx.distributed.all_gather(mx.array(padded), stream=mx.cpu))
    return {int(i): value for row, length in zip(rows, lengths, strict=True)
            for i, value in json.loads(row[:length].tobytes()).items()}
