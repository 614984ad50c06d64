"""Reference pages of the documentation, generated from the code they describe.

    python -m rlco_trainer.reference docs

writes docs/launch.md and the pages under docs/reference; tests hold them to the code.
"""
