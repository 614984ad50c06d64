"""A dataset to the Hugging Face hub, through LeRobot's own push, with a card written from the sidecar."""

import os
from collections import Counter
from pathlib import Path

from rlco_common.contract import contract_from_json
from rlco_common.errors import ConfigError, DataError
from rlco_trainer.dataset.reader import read_sidecar
from rlco_trainer.dataset.schema import AGE_KEY, STAMP_KEY, lerobot_dataset_class

CARD = "README.md"
TAGS = ["robotics", "ros2", "rl-co"]
_NOT_UPLOADED = ("images/", f"{CARD}")      # LeRobot leaves out the first and writes the second itself


def push_dataset(root: Path, repo_id: str, *, private: bool = False, license_id: str = "apache-2.0") -> str:
    """Upload a dataset; returns its address. Raises DataError without network or token, with what to do."""
    _require_repo_id(repo_id)
    description = card_text(root)
    _require_online()
    import httpx
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import HfHubHTTPError

    dataset = lerobot_dataset_class(online=True)(repo_id=repo_id, root=root)
    try:
        dataset.push_to_hub(tags=TAGS, license=license_id, private=private or None, dataset_description=description)
    except HfHubHTTPError as error:
        raise DataError(f"the hub refused {repo_id}: {error}; check the token's rights and the name") from error
    except (OSError, httpx.HTTPError) as error:
        raise DataError(f"the hub cannot be reached: {error}; try again with a network, or use --dry-run") from error
    return f"{ENDPOINT}/datasets/{repo_id}"


def dry_run(root: Path, repo_id: str, *, license_id: str = "apache-2.0") -> str:
    """Write the card into the dataset as README.md; returns what would be uploaded, as text. Needs no network."""
    _require_repo_id(repo_id)
    description = card_text(root)
    dataset = lerobot_dataset_class()(repo_id=repo_id, root=root)
    from lerobot.datasets.utils import create_lerobot_dataset_card

    card = create_lerobot_dataset_card(tags=TAGS, dataset_info=dataset.meta.info, license=license_id, repo_id=repo_id,
                                       dataset_description=description)
    (Path(root) / CARD).write_text(str(card), encoding="utf-8")
    files = uploaded_files(root)
    lines = [f"would upload {len(files)} files, {sum(size for _, size in files) / 1e6:.1f} MB, to {repo_id}",
             *(f"  {size / 1e6:9.2f} MB  {name}" for name, size in files), f"card: {Path(root) / CARD}"]
    return "\n".join(lines)


def uploaded_files(root: Path) -> list[tuple[str, int]]:
    """(path in the dataset, bytes) of every file that LeRobot would upload beside the card."""
    names = sorted(path.relative_to(root) for path in Path(root).rglob("*") if path.is_file())
    return [(str(name), (Path(root) / name).stat().st_size) for name in names if not str(name).startswith(_NOT_UPLOADED)]


def card_text(root: Path) -> str:
    """The description part of a dataset card, Markdown, from the sidecar alone."""
    sidecar = read_sidecar(root)
    contract = contract_from_json(sidecar["contract"], str(root))
    episodes, ticks = sidecar["episodes"], sum(sidecar["lengths"])
    domains = ", ".join(sorted({entry["domain"] for entry in episodes}))
    cameras = ", ".join(f"`{name}` {camera.width}x{camera.height}" for name, camera in contract.cameras.items())
    held_out = sum(entry.get("split") == "held_out" for entry in episodes)
    kinds = Counter(entry.get("kind", "demonstration") for entry in episodes)
    instructions = Counter(entry["instruction"] for entry in episodes)
    lines = [
        f"{len(episodes)} episodes, {ticks} control ticks at {contract.control_rate_hz:g} Hz "
        f"({ticks * contract.control_period_s / 60:.1f} minutes), domain {domains}.", "",
        "A domain `standin` or `twin` is simulation; only `real` is a real robot.", "",
        f"- Cameras: {cameras}, lossless",
        f"- State: {', '.join(contract.proprioception_names)}",
        f"- Action: {', '.join(contract.action.names)}; metres, radians and gripper opening (0 closed, 1 open) per tick, from "
        "commanded targets, up to "
        f"{contract.action.max_translation_m:g} m and {contract.action.max_rotation_rad:g} rad",
        f"- `{STAMP_KEY}`: true time of the tick in nanoseconds; `{AGE_KEY}`: how much older images and state are",
        f"- Episodes by kind: {', '.join(f'{kind} {count}' for kind, count in sorted(kinds.items()))}; held out: {held_out}",
        f"- Contract `{contract.name}` `{sidecar['contract_hash']}`, content `{sidecar['content_hash']}`",
        "- `meta/rlco.json`: contract, split, digests, audit figures and lineage", "",
        "| instruction | episodes |", "|---|---|",
        *(f"| {text} | {count} |" for text, count in sorted(instructions.items())),
    ]
    return "\n".join(lines)


def _require_repo_id(repo_id: str) -> None:
    if repo_id.count("/") != 1 or not all(repo_id.split("/")):
        raise ConfigError(f"'{repo_id}' is not a name on the hub; give OWNER/NAME")


def _require_online() -> None:
    from huggingface_hub import get_token
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        raise DataError("HF_HUB_OFFLINE is set, the hub is not asked; unset it, or use --dry-run")
    if not (os.environ.get("HF_TOKEN") or get_token()):
        raise DataError("there is no token for the hub; set HF_TOKEN or run 'hf auth login', or use --dry-run")
