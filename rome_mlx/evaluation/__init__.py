"""CounterFact: the published benchmark of model editing (ROME paper, section 3.3)."""
