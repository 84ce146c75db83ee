"""An mlx-lm model: loading it, its parts, its tokens, its identity."""
