"""What was done to a model: which weights changed and how, and what was written."""
