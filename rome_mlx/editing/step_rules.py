"""How far and where to the optimisation of a value steps.

A rule holds what it remembers of the steps before: `step` moves δ (requests, d_out), which is then
cut back to its ball, ‖δ‖ ≤ radius (requests, 1); `only` forgets all but some requests. `scale` is
what the radius is a multiple of, (requests,), from the unedited values of each request's contexts.
"""

import mlx.core as mx
import mlx.optimizers as optim


class Adam:
    """PyTorch's Adam at a constant rate, as in the authors' code: without the bias correction the
    direction found is another one."""

    def __init__(self, rate: float):
        self._adam = optim.Adam(learning_rate=rate, bias_correction=True)

    def scale(self, unedited: list[mx.array]) -> mx.array:
        """‖v0‖, of the first context."""
        return mx.stack([mx.linalg.norm(values[0]) for values in unedited])

    def step(self, delta: mx.array, gradient: mx.array, radius: mx.array) -> mx.array:
        return self._adam.apply_gradients({"delta": gradient}, {"delta": delta})["delta"]

    def only(self, keep: mx.array) -> None:
        for name, moment in self._adam.state.get("delta", {}).items():
            self._adam.state["delta"][name] = moment[keep]


class Ball:
    """Steps along the gradient's direction, each a fraction of the ball's radius: `first`, then
    less and less.

    A value is found on the ball's surface, where Adam, which steps by numbers and not by
    directions, arrives late and turns slowly. There only the gradient's part along the surface
    counts.
    """

    SHORTER, MOMENTUM = 0.8, 0.3  # a step's length and direction, of the one before
    _SURFACE = 0.98  # of the radius

    def __init__(self, first: float):
        self._length = first
        self._direction: mx.array | None = None

    def scale(self, unedited: list[mx.array]) -> mx.array:
        """The mean of ‖v‖ over contexts: near the beginning of a text, as in the bare prompt,
        values can be many times shorter."""
        return mx.stack([mx.linalg.norm(values, axis=1).mean() for values in unedited])

    def step(self, delta: mx.array, gradient: mx.array, radius: mx.array) -> mx.array:
        out = _unit(delta)
        leaves = (_along(delta, out) > self._SURFACE * radius) & (_along(gradient, out) < 0)

        def inside(x: mx.array) -> mx.array:
            return mx.where(leaves, x - _along(x, out) * out, x)

        direction = _unit(inside(gradient))
        if self._direction is not None:
            direction = inside(direction + self.MOMENTUM * self._direction)
        self._direction = direction
        moved = delta - self._length * radius * _unit(direction)
        self._length *= self.SHORTER
        return moved

    def only(self, keep: mx.array) -> None:
        if self._direction is not None:
            self._direction = self._direction[keep]


def _along(x: mx.array, unit: mx.array) -> mx.array:
    return (x * unit).sum(axis=1, keepdims=True)


def _unit(x: mx.array) -> mx.array:
    """Rows of length 1; those of length 0 as they are."""
    return x / mx.maximum(mx.linalg.norm(x, axis=1, keepdims=True), 1e-30)


#: hyperparameter v_rule -> rule
STEP_RULES = {"adam": Adam, "ball": Ball}
