"""Disjoint ranges of episode seeds, so that no evaluation state is ever trained on.

An episode seed fixes the initial state and the instruction of a task in every domain.
"""

EVALUATION = range(10_000)
SELECTION = range(10_000, 20_000)        # choosing settings and checkpoints; held out from training and evaluation
REAL_DEMOS = range(20_000, 30_000)
SIM_DEMOS = range(100_000, 1_000_000)
RL = range(1_000_000, 2**31)
