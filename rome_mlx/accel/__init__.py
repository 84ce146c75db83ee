"""What makes MLX fast on a Linux CPU."""
