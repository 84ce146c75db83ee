"""The one error that bad input raises."""


class RomeError(ValueError):
    """Names the value that cannot be used and the remedy, in one sentence."""
