"""Find where and how to edit a model that nothing is known of."""
