"""Generating demonstrations: parallel, resumable, the same whatever interrupts it."""

import json
import signal
import subprocess
import sys
import time

import pytest

from rlco_common.errors import ConfigError
from rlco_common.seeds import SIM_DEMOS
from rlco_sim_bridge.variation import Variation
from rlco_trainer.dataset.reader import read_sidecar
from rlco_trainer.dataset.simulated import write_simulated_demos

COUNT = 12


def command(out, *extra):
    return [sys.executable, "-m", "rlco_trainer.cli", "demos", "push_cube", "-n", str(COUNT), "--out", str(out), *extra]


@pytest.mark.long
def test_a_killed_generation_goes_on_and_gives_the_same_dataset(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    spool = tmp_path / ".killed.demos"
    process = subprocess.Popen(command(killed, "--workers", "1"), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(spool.glob("*.npz"))) < 3:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)    # a file system has no event to wait on
    process.send_signal(signal.SIGKILL)
    process.wait()
    held = len(list(spool.glob("*.npz")))
    assert 3 <= held < COUNT
    resumed = subprocess.run(command(killed), stderr=subprocess.PIPE, text=True, check=True)
    assert f"{held}/{COUNT}" in resumed.stderr, "it started from the beginning"
    subprocess.run(command(whole), stderr=subprocess.DEVNULL, check=True)
    first, second = read_sidecar(killed), read_sidecar(whole)
    assert first["content_hash"] == second["content_hash"]
    assert first["episodes"] == second["episodes"]
    assert len(first["episodes"]) == COUNT
    assert not spool.exists()


def test_a_stopped_generation_with_other_settings_is_not_mixed_in(tmp_path, contract):
    spool = tmp_path / ".demos.demos"
    spool.mkdir()
    (spool / "recipe.json").write_text(json.dumps({"kind": "simulated", "noise": 0.9}))
    with pytest.raises(ConfigError, match=r"other settings.*noise: 0\.9 -> 0\.1"):
        write_simulated_demos(contract, tmp_path / "demos", task="push_cube", domain="twin", count=1, noise=0.1, workers=0)


def test_skipped_seeds_give_other_scenes(tmp_path, contract):
    arguments = {"task": "push_cube", "domain": "twin", "count": 2, "noise": 0.1, "workers": 0, "quiet": True}
    write_simulated_demos(contract, tmp_path / "all", **arguments)
    write_simulated_demos(contract, tmp_path / "rest", skip=100, **arguments)
    first, rest = ([entry["seed"] for entry in read_sidecar(tmp_path / name)["episodes"]] for name in ("all", "rest"))
    assert first[0] == SIM_DEMOS.start and rest[0] >= SIM_DEMOS.start + 100
    with pytest.raises(ConfigError, match="skip is -1"):
        write_simulated_demos(contract, tmp_path / "none", skip=-1, **arguments)


def test_held_out_objects_are_never_demonstrated(tmp_path, contract):
    with pytest.raises(ConfigError, match="held-out"):
        write_simulated_demos(contract, tmp_path / "demos", task="pick_place", domain="twin", count=1, noise=0.1, workers=0,
                              variation=Variation(objects="unseen"))

