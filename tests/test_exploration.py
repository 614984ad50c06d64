"""The exploration noise of flow policies: what is sampled has the likelihood that PPO is told."""

import pytest
import torch
from policies import make_policy

from rlco_common.errors import ConfigError
from rlco_policy.checkpoint import load_policy, save_policy
from rlco_policy.reinflow import log_equicorrelated


@pytest.fixture(scope="module")
def correlated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    save_policy(make_policy("compact_flow"), folder)
    return load_policy(folder, config_changes={"noise_std": [0.02, 0.05], "noise_correlation": 0.8})


@pytest.mark.parametrize("correlation", (0.0, 0.3, 0.9))
def test_entries_sum_to_the_joint_density_of_any_number_of_first_steps(correlation):
    noise = torch.randn(5, 8, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    entries = log_equicorrelated(noise, correlation)
    for steps in (1, 4, 8):
        covariance = (1 - correlation) * torch.eye(steps, dtype=torch.float64) + correlation
        joint = torch.distributions.MultivariateNormal(torch.zeros(steps, dtype=torch.float64), covariance)
        torch.testing.assert_close(entries[:, :steps].sum(1), joint.log_prob(noise[:, :steps].transpose(1, 2)))


def test_steps_of_a_chunk_move_together(correlated):
    noise = correlated._exploration((4000, 8, 7), torch.Generator().manual_seed(0))
    within = torch.corrcoef(noise[:, :, 0].T)
    assert within[~torch.eye(8, dtype=torch.bool)].mean() == pytest.approx(0.8, abs=0.03)
    assert torch.corrcoef(noise[:, 0].T)[0, 1] == pytest.approx(0.0, abs=0.06)
    assert float(noise.std()) == pytest.approx(1.0, abs=0.03)


def test_a_correlated_sample_is_scored_as_it_was_drawn(correlated):
    inputs = correlated.example_inputs(6)
    sampled = correlated.sample(inputs, generator=torch.Generator().manual_seed(1))
    scored = correlated.evaluate(inputs, sampled.trace)
    torch.testing.assert_close(scored.logprob, sampled.logprob, atol=1e-4, rtol=1e-4)


def test_changed_fields_are_kept_by_the_next_checkpoint_and_bad_ones_refused(correlated, tmp_path):
    save_policy(correlated, tmp_path / "next")
    assert load_policy(tmp_path / "next").config.noise_correlation == 0.8
    with pytest.raises(ConfigError, match="noise_correlation"):
        load_policy(tmp_path / "next", config_changes={"noise_correlation": 1.0})
    with pytest.raises(ConfigError, match="noise_sdt"):
        load_policy(tmp_path / "next", config_changes={"noise_sdt": [0.1, 0.2]})
