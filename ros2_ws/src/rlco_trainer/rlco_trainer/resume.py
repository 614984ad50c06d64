"""A run goes on only under the settings that it began with."""

from pathlib import Path
from typing import Any

from rlco_common.errors import ConfigError, TrainingError
from rlco_common.strict import from_mapping, load_yaml, to_mapping
from rlco_trainer.config import StageOneConfig, StageTwoConfig
from rlco_trainer.run_state import latest_run

FREE = frozenset({
    "out", "steps", "iterations", "time_limit_s", "target_success", "min_initial_success", "stall_iterations", "save_every",
    "log_every", "monitor_every", "measure_every", "measure_episodes", "cosine_every", "scenes", "workers", "backend",
    "overlap", "micro_batches", "threads", "device",
})
"""Fields that a resumed run may change: how long, how often and on what it runs, not what it learns from and how."""


def checkpoint_to_resume(config: StageOneConfig | StageTwoConfig) -> Path | None:
    """The newest checkpoint of the run in `config.out`; None where there is none yet.

    Raises TrainingError when that run began with other settings than `config` has: its weights would get the wrong name.
    """
    checkpoint, path = latest_run(config.out), config.out / "config.yaml"
    if checkpoint is None or not path.is_file():
        return checkpoint
    try:
        began = _flat(to_mapping(from_mapping(type(config), load_yaml(path), str(path))))
    except ConfigError as error:
        raise TrainingError(f"{config.out} holds another kind of run: {error}. Give another out=") from error
    now = _flat(to_mapping(config))
    changed = [f"{name}={_text(now.get(name))} (it began with {_text(began.get(name))})" for name in sorted({*began, *now})
               if name.split(".")[0] not in FREE and began.get(name) != now.get(name)]
    if changed:
        raise TrainingError(f"{config.out} holds a run with other settings: {', '.join(changed)}. Give another out= for a new "
                            f"run, or the settings of {path} to go on with this one")
    return checkpoint


def require_same_datasets(began: dict[str, list[dict]], now: dict[str, list[dict]], out: Path) -> None:
    """Raise TrainingError when a dataset of the run (see dataset_lineage) has other content than when it began."""
    for name, datasets in now.items():
        before = [dataset["content_hash"] for dataset in began.get(name, [])]
        changed = [dataset["path"] for i, dataset in enumerate(datasets) if [dataset["content_hash"]] != before[i:i + 1]]
        if changed:
            raise TrainingError(f"{', '.join(changed)} is not what the run in {out} began with: its content has changed. Give "
                                "another out= for a new run, or restore it to go on with this one")


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value of nested settings."""
    found = {}
    for name, value in settings.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def _text(value: Any) -> str:
    return "''" if value == "" else str(value)
