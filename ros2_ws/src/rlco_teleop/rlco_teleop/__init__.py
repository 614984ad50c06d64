"""Operator devices, the command gate and the recorder."""
