"""Policy checkpoints: a directory with `model.safetensors`, `policy.json` and `assets/`, replaced as a whole.

`policy.json` holds the registered name, configuration, spec, statistics, contract, lineage and the assets' hashes, and a
digest over them and the weights' header: what runs on the robot is what was trained, or loading refuses. Weights that a
public base model holds unchanged are left to it. Optimiser and trainer state are the trainer's business.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rlco_common.contract import Contract, contract_from_json, require_same_contract
from rlco_common.errors import DataError
from rlco_common.folders import staged
from rlco_common.strict import from_mapping, to_mapping
from rlco_policy.interface import VLAPolicy
from rlco_policy.registry import policy_class, policy_name
from rlco_policy.statistics import statistics_from_json

FORMAT = 1
WEIGHTS, DESCRIPTION, ASSETS = "model.safetensors", "policy.json", "assets"
_STAGING = ".saving"


def save_policy(policy: VLAPolicy, directory: str | Path, lineage: dict[str, Any] | None = None, *,
                whole: bool = False) -> Path:
    """Write a checkpoint so that `directory` holds the old one or the new one whole, whenever the process dies.

    lineage: plain data that tells where the weights come from (dataset hashes, parent checkpoint, steps, seed).
    whole: also write what a base model holds unchanged, so that the checkpoint loads without it.
    """
    directory = Path(directory).absolute()
    _remove_leftovers(directory)
    with staged(directory, suffix=_STAGING) as staging:
        left_out = frozenset() if whole else policy.left_to_base()
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.state_dict().items()
                   if name not in left_out}
        save_file(weights, staging / WEIGHTS)
        (staging / ASSETS).mkdir()
        policy.save_assets(staging / ASSETS)
        description = _describe(policy, lineage or {}) | {"assets": _hashes(staging / ASSETS)}
        description["base"] = policy.base_reference() if left_out else None
        description["digest"] = _digest(description, staging / WEIGHTS)
        (staging / DESCRIPTION).write_text(json.dumps(description, indent=1, sort_keys=True), encoding="utf-8")
        assets = list((staging / ASSETS).iterdir())
        if not assets:
            (staging / ASSETS).rmdir()
        for path in (*assets, staging / WEIGHTS, staging / DESCRIPTION, staging):
            _sync(path)
        _replace(staging, directory)
    return directory


def load_policy(directory: str | Path, contract: Contract | None = None,
                config_changes: dict[str, Any] | None = None) -> VLAPolicy:
    """Load a policy on the CPU. With `contract`, a checkpoint made under another one raises ContractMismatch.

    config_changes: fields of the policy's configuration to replace, nested as it is; the weights have to fit still and take the
    dtypes that it asks for.

    Raises DataError when a file is missing or damaged, statistics or configuration were altered, weight names or shapes
    do not fit, or the base model that it builds on is not to be had.
    """
    directory = resolve(directory)
    description = read_description(directory)
    stored = contract_from_json(description["contract"], str(directory / DESCRIPTION))
    if contract is not None:
        require_same_contract(contract, stored, f"checkpoint {directory}")
    weights = _read_weights(directory / WEIGHTS)
    if (description["digest"] != _digest(description, directory / WEIGHTS)
            or description.get("assets", {}) != _hashes(directory / ASSETS)):
        raise DataError(f"{directory}: the checkpoint was altered after it was saved (statistics, configuration, "
                        "contract or the list of weights); restore the original files or train again")
    policy = _blank(directory, description, stored, config_changes)
    _load_weights(policy, weights, description.get("base"), directory / WEIGHTS)
    return policy


def blank_policy(directory: str | Path, config_changes: dict[str, Any] | None = None) -> VLAPolicy:
    """The policy of a checkpoint without its weights, for who asks for its shapes; see load_policy."""
    directory = resolve(directory)
    description = read_description(directory)
    return _blank(directory, description, contract_from_json(description["contract"], str(directory / DESCRIPTION)),
                  config_changes)


def _blank(directory: Path, description: dict[str, Any], contract: Contract, changes: dict[str, Any] | None) -> VLAPolicy:
    source = directory / DESCRIPTION
    cls = policy_class(description["policy"])
    config = from_mapping(cls.config_class, _replaced(description["config"], changes or {}), f"{source}: config")
    statistics = statistics_from_json(description["statistics"], str(source))
    with torch.random.fork_rng(devices=[]):
        return cls.blank(config, contract, statistics, directory / ASSETS)


def read_description(directory: str | Path) -> dict[str, Any]:
    """The parsed `policy.json`: policy, config, spec, statistics, contract, contract_hash, lineage, digest."""
    path = resolve(directory) / DESCRIPTION
    if not path.is_file():
        raise DataError(f"{path}: no such file; give the directory of a policy checkpoint")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error
    missing = sorted({"format", "policy", "config", "statistics", "contract", "lineage", "digest"} - set(description))
    if missing or description["format"] != FORMAT:
        raise DataError(f"{path}: not a policy checkpoint of format {FORMAT}"
                        + (f"; lacks {', '.join(missing)}" if missing else f", but of {description['format']}"))
    return description


def _replaced(fields: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return fields | {name: _replaced(fields[name], value) if isinstance(value, dict) and isinstance(fields.get(name), dict)
                     else value for name, value in changes.items()}


def resolve(directory: str | Path) -> Path:
    """The directory to read: `directory`, or its predecessor if a save was killed between the two renames."""
    directory = Path(directory).absolute()
    previous = _previous(directory)
    return previous if not directory.exists() and previous.exists() else directory


def _describe(policy: VLAPolicy, lineage: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "policy": policy_name(policy),
        "config": to_mapping(policy.config),
        "spec": to_mapping(policy.spec),
        "statistics": policy.statistics.to_json(),
        "statistics_hash": policy.statistics.hash,
        "contract": policy.contract.to_json(),
        "contract_hash": policy.contract.hash,
        "lineage": lineage,
    }


def _digest(description: dict[str, Any], weights: Path) -> str:
    """SHA-256 over the description (without the digest itself) and the weights' header (names, shapes, dtypes)."""
    content = {key: value for key, value in description.items() if key != "digest"}
    with weights.open("rb") as stream:
        header = stream.read(int.from_bytes(stream.read(8), "little"))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode() + header).hexdigest()


def _hashes(assets: Path) -> dict[str, str]:
    """File name -> SHA-256 of its content."""
    if not assets.is_dir():
        return {}
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(assets.iterdir())}


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; the checkpoint is incomplete")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise DataError(f"{path}: unreadable weights: {error}") from error


def _load_weights(policy: VLAPolicy, weights: dict[str, torch.Tensor], base: dict[str, Any] | None, path: Path) -> None:
    own = policy.state_dict()
    absent, unexpected = own.keys() - weights.keys(), sorted(weights.keys() - own.keys())
    missing = [] if base else sorted(absent)
    wrong = [f"{name} {list(weights[name].shape)} instead of {list(own[name].shape)}"
             for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape]
    if missing or unexpected or wrong:
        parts = [f"missing: {', '.join(missing)}"] * bool(missing) + [f"unexpected: {', '.join(unexpected)}"] * bool(
            unexpected) + [f"of another shape: {', '.join(sorted(wrong))}"] * bool(wrong)
        raise DataError(f"{path}: the weights do not fit {type(policy).__name__}; " + "; ".join(parts))
    adopt = any(tensor.is_meta for tensor in own.values())
    if adopt:       # into memory aligned as a new tensor's: how a file lies in memory may change the last bit of a product
        for name in weights:
            weights[name] = weights[name].to(own[name].dtype, copy=True)
    policy.load_state_dict(weights, strict=not base, assign=adopt)
    if base:
        policy.load_base(absent, base)


def _replace(staging: Path, directory: Path) -> None:
    """Put `staging` at `directory`. A kill between the renames leaves the predecessor, which `resolve` finds."""
    previous = _previous(directory)
    if directory.exists():
        if previous.exists():
            shutil.rmtree(previous)
        os.rename(directory, previous)
    os.rename(staging, directory)
    _sync(directory.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _remove_leftovers(directory: Path) -> None:
    """Delete what killed saves of this checkpoint left behind. One process writes a checkpoint at a time."""
    for path in directory.parent.glob(f".{directory.name}.*{_STAGING}"):
        shutil.rmtree(path)


def _previous(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.previous")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
