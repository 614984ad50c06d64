"""`rlco shadow`: a policy on recorded operation, without being connected; its errors by phase, as a page."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rlco_common.contract import ACTION_NAMES, Contract, contract_from_json, require_same_contract
from rlco_common.errors import DataError
from rlco_common.observation import encode_image
from rlco_policy.checkpoint import load_policy
from rlco_policy.interface import ObsBatch, VLAPolicy
from rlco_policy.shadow import PHASES, SCALES, UNITS, ErrorTable, phases_of
from rlco_teleop.bags import Bag, drive_segments, find_episodes, read_episode_metadata
from rlco_trainer.dataset.align import align
from rlco_trainer.dataset.build import read_streams
from rlco_trainer.dataset.reader import load_demos
from rlco_trainer.dataset.schema import SIDECAR
from rlco_trainer.dataset.segments import parts_of
from rlco_trainer.pages import bars_url, curve_url, write_page

BATCH = 32
HUMAN, POLICY = "#8a8f98", "#2f6db3"
TRACED = (0, 1, 2, 6)       # of ACTION_NAMES: what the traces show


@dataclass(frozen=True)
class Operated:
    """What an operator did. images: camera -> uint8 [T, size, size, 3]; actions: float32 [T, 7]; ticks: int64 [T], number of
    each tick on the control grid (a refused tick leaves a hole)."""

    name: str
    instruction: str
    images: dict[str, np.ndarray]
    proprioception: np.ndarray
    actions: np.ndarray
    ticks: np.ndarray


@dataclass(frozen=True)
class Shadowed:
    """predictions: float64 [T, chunk, 7] from the observation of every tick. error_m: mean translation error per tick."""

    episode: Operated
    phases: list[str]
    predictions: np.ndarray
    table: ErrorTable


def shadow(contract: Contract, source: Path, checkpoint: Path, out: Path) -> str:
    """Run `checkpoint` on every tick that an operator drove in `source` (bag, folder of bags, or dataset), write the page `out`
    and return the table. Raises DataError when there is no such tick, ContractMismatch on another contract."""
    policy = load_policy(checkpoint, contract)
    episodes = [shadow_episode(policy, episode) for episode in operated(contract, source, policy.spec.image_size)]
    if not episodes:
        raise DataError(f"{source}: no tick in which an operator drove the arm")
    table = sum_of([episode.table for episode in episodes])
    write_page("shadow.html.j2", out, title=f"{checkpoint} in the shadow of {source}", episodes=len(episodes),
               chunk=policy.spec.chunk, rows=_rows(table), pictures=_bars(table), traces=_traces(_worst(episodes)),
               worst=_worst(episodes).episode)
    return f"{table.text()}\n{len(episodes)} episodes; page: {out}"


def operated(contract: Contract, source: Path, image_size: int) -> Iterator[Operated]:
    """What operators did in a dataset, a bag or the bags of a folder."""
    if (source / SIDECAR).is_file():
        yield from _of_dataset(contract, source, image_size)
        return
    bags = find_episodes(source) if source.exists() else []
    if not bags:
        raise DataError(f"{source}: neither a dataset nor an episode bag nor a folder of bags")
    for bag in bags:
        yield from _of_bag(contract, bag, image_size)


def shadow_episode(policy: VLAPolicy, episode: Operated) -> Shadowed:
    """Predictions from every tick, each compared with what the operator did in the ticks that it is for."""
    predictions = np.concatenate([_act(policy, episode, slice(start, start + BATCH))
                                  for start in range(0, len(episode.actions), BATCH)])
    phases, table = phases_of(episode.actions[:, 6]), ErrorTable()
    row_of = {int(tick): row for row, tick in enumerate(episode.ticks)}
    for tick, chunk in zip(episode.ticks.tolist(), predictions, strict=True):
        for step, predicted in enumerate(chunk):
            if (row := row_of.get(tick + step)) is not None:
                table.add(phases[row], predicted, episode.actions[row].astype(float))
    return Shadowed(episode, phases, predictions, table)


def sum_of(tables: list[ErrorTable]) -> ErrorTable:
    total = ErrorTable()
    for table in tables:
        for phase in PHASES:
            total.error[phase] += table.error[phase]
            total.motion[phase] += table.motion[phase]
            total.count[phase] += table.count[phase]
    return total


def _act(policy: VLAPolicy, episode: Operated, rows: slice) -> np.ndarray:
    proprioception = torch.from_numpy(episode.proprioception[rows])
    batch = ObsBatch({name: torch.from_numpy(images[rows]) for name, images in episode.images.items()
                      if name in policy.spec.cameras}, proprioception, [episode.instruction] * len(proprioception))
    return policy.act(policy.preprocess(batch)).double().cpu().numpy()


def _of_dataset(contract: Contract, root: Path, image_size: int) -> Iterator[Operated]:
    demos = load_demos(root, contract, image_size)
    for index, (start, end, instruction) in enumerate(zip(demos.starts, demos.ends, demos.instructions, strict=True)):
        yield Operated(f"{root.name}, episode {index}", instruction,
                       {name: images[start:end] for name, images in demos.images.items()},
                       demos.proprioception[start:end], demos.actions[start:end], np.arange(end - start))


def _of_bag(contract: Contract, bag: Path, image_size: int) -> Iterator[Operated]:
    metadata = read_episode_metadata(bag)
    require_same_contract(contract, contract_from_json(metadata.contract, str(bag)), f"bag {bag.name}")
    whole = align(contract, read_streams(contract, bag), metadata, decode=False).episode
    with Bag(bag) as opened:
        segments = drive_segments(opened)
    for part in parts_of(segments, whole.stamps_ns, contract.control_period_ns, keep_policy=False):
        chosen = whole.select(part.keep)
        if len(chosen):
            images = {name: np.stack([encode_image(image, image_size) for image in pictures])
                      for name, pictures in chosen.images.items()}
            ticks = np.rint((chosen.stamps_ns - chosen.stamps_ns[0]) / contract.control_period_ns).astype(np.int64)
            yield Operated(metadata.episode + part.suffix, metadata.instruction, images, chosen.proprioception, chosen.actions,
                           ticks)


# -- the page


def _rows(table: ErrorTable) -> list[tuple[str, int, list[tuple[str, str]]]]:
    return [(phase, count, [(f"{error:.2f}", f"{motion:.2f}") for error, motion in zip(errors, motions, strict=True)])
            for phase, count, errors, motions in table.rows()]


def _bars(table: ErrorTable) -> list[tuple[str, str]]:
    rows = list(table.rows())
    groups = (("Translation per tick, mm", slice(0, 3)), ("Rotation per tick, degrees", slice(3, 6)),
              ("Gripper opening", slice(6, 7)))
    return [(title, bars_url([phase for phase, *_ in rows], {
        name: [errors[part][k] for _, _, errors, _ in rows] for k, name in enumerate(ACTION_NAMES[part])}, "mean error"))
        for title, part in groups]


def _worst(episodes: list[Shadowed]) -> Shadowed:
    """The episode with the largest mean translation error."""
    return max(episodes, key=lambda shadowed: sum(error[:3].sum() for error in shadowed.table.error.values())
               / max(sum(shadowed.table.count.values()), 1))


def _traces(shadowed: Shadowed) -> list[tuple[str, str]]:
    ticks = shadowed.episode.ticks.tolist()
    return [(f"{ACTION_NAMES[k]}, {UNITS[k]}", curve_url({
        "operator": (list(zip(ticks, (SCALES[k] * shadowed.episode.actions[:, k]).tolist(), strict=True)), HUMAN),
        "policy": (list(zip(ticks, (SCALES[k] * shadowed.predictions[:, 0, k]).tolist(), strict=True)), POLICY),
    }, "tick", f"{ACTION_NAMES[k]}, {UNITS[k]}", from_zero=False)) for k in TRACED]
