"""A page on this machine: trace a fact, write another answer, ask with edits on and off."""
