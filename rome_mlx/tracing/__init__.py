"""Causal tracing (ROME paper, section 2): which hidden states carry a fact."""
