"""Datasets, Stage I, Stage II, evaluation and reports."""
