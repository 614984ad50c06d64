"""The figures of the paper that our results are shown beside: success on the real robot, in percent. RL-based sim-real
co-training of VLA models (RL-Co), Tables I and II."""

MODELS = ("OpenVLA", "π0.5")
REGIMES = {"real_only": "Real-only SFT", "sft_cotraining": "SFT co-training", "rl_co": "RL-Co"}

# Table I: model -> regime -> task -> (mean, standard deviation) over the paper's evaluation runs.
TABLE_I = {
    "OpenVLA": {
        "real_only": {"pick_place": (6.3, 0.0), "push_cube": (20.0, 13.3), "open_drawer": (0.0, 0.0),
                      "close_drawer": (10.0, 10.0)},
        "sft_cotraining": {"pick_place": (23.4, 4.7), "push_cube": (51.7, 5.0), "open_drawer": (0.0, 0.0),
                           "close_drawer": (85.0, 5.0)},
        "rl_co": {"pick_place": (58.8, 10.0), "push_cube": (68.3, 11.7), "open_drawer": (35.0, 15.0),
                  "close_drawer": (95.0, 5.0)},
    },
    "π0.5": {
        "real_only": {"pick_place": (71.9, 9.4), "push_cube": (0.0, 0.0), "open_drawer": (0.0, 0.0),
                      "close_drawer": (35.0, 15.0)},
        "sft_cotraining": {"pick_place": (68.8, 9.4), "push_cube": (10.0, 3.3), "open_drawer": (10.0, 0.0),
                           "close_drawer": (95.0, 5.0)},
        "rl_co": {"pick_place": (81.3, 9.4), "push_cube": (18.4, 1.7), "open_drawer": (65.0, 5.0),
                  "close_drawer": (100.0, 0.0)},
    },
}
# Table II, π0.5 on pick_place: regime -> variation -> success.
TABLE_II = {
    "real_only": {"objects=unseen": 25.0, "start=perturbed": 40.0},
    "sft_cotraining": {"objects=unseen": 31.3, "start=perturbed": 55.0},
    "rl_co": {"objects=unseen": 56.3, "start=perturbed": 70.0},
}


def paper_success(model: str, regime: str, task: str, variation: str = "") -> str:
    """What the paper reports, as text without the percent sign; empty where it reports nothing."""
    if variation:
        value = TABLE_II.get(regime, {}).get(variation)
        return f"{value:.1f}" if value is not None and (model, task) == ("π0.5", "pick_place") else ""
    cell = TABLE_I[model].get(regime, {}).get(task)
    return "" if cell is None else f"{cell[0]:.1f} ± {cell[1]:.1f}"


def paper_table(variation: str = "") -> str:
    """Which table of the paper paper_success takes its figures from."""
    return "Table II" if variation else "Table I"
