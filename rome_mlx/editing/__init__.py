"""Writing facts into MLP weights: ROME and its successors."""
