"""Second moments of MLP keys, C = E[k kᵀ] (ROME paper, section 3.1)."""
