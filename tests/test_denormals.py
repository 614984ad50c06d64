"""Training takes denormal numbers as zero, and leaves the process as it was."""

import warnings

import numpy as np
import pytest
import torch

from rlco_trainer.denormals import flushed_denormals


def half_of_the_smallest_normal() -> float:
    return float(torch.tensor(np.finfo(np.float32).tiny) * 0.5)


def test_denormals_are_zero_inside_and_numbers_again_outside():
    assert half_of_the_smallest_normal() > 0
    with flushed_denormals():
        assert half_of_the_smallest_normal() == 0
    assert half_of_the_smallest_normal() > 0


def test_an_error_inside_leaves_no_trace():
    with pytest.raises(ZeroDivisionError), flushed_denormals():
        raise ZeroDivisionError
    assert half_of_the_smallest_normal() > 0


def test_gradients_computed_inside_have_no_denormals():
    """A softmax whose weakest entry has a gradient between zero and the smallest normal number."""
    def weakest_gradient() -> float:
        scores = torch.tensor([0.0, -90.0], requires_grad=True)
        scores.softmax(0)[0].backward()
        return abs(float(scores.grad[1]))

    assert 0 < weakest_gradient() < np.finfo(np.float32).tiny
    with flushed_denormals():
        assert weakest_gradient() == 0


def test_numpy_does_not_warn_inside():
    with warnings.catch_warnings(), flushed_denormals():
        warnings.simplefilter("error")
        assert np.finfo(np.float32).eps > 0
