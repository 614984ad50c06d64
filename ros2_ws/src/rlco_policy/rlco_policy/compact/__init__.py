"""Compact reference policies (1 to 5 million parameters, trained from scratch): the whole method on a CPU."""
