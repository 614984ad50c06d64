"""Faults on purpose: what each one does to the running graph, what is promised for it, and whether the promise held."""
