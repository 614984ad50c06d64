"""`rlco dataset audit`: every episode of a dataset or of bags as a strip, with a go or a no-go and its reasons, on one page."""

import io
import itertools
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rlco_common.contract import Contract, contract_from_json
from rlco_common.episode import EpisodeMetadata
from rlco_common.errors import DataError
from rlco_common.strict import from_mapping
from rlco_teleop.bags import find_episodes
from rlco_trainer.dataset.align import Samples
from rlco_trainer.dataset.checks import gripper_check, longest_frozen_s
from rlco_trainer.dataset.edit import packed_episodes, read_editable_sidecar
from rlco_trainer.dataset.episode import idle_ticks
from rlco_trainer.dataset.examine import Examined, examine_bag
from rlco_trainer.dataset.figures import (
    FROZEN_TRAVEL_M,
    EpisodeFigures,
    Finding,
    action_figures,
    age_figures,
    findings,
)
from rlco_trainer.dataset.packed import PackedEpisode
from rlco_trainer.dataset.png import decode_png
from rlco_trainer.dataset.schema import SIDECAR
from rlco_trainer.dataset.strips import COLORS, GREY, INK, Strip, spans
from rlco_trainer.pages import data_url, write_page

THUMBNAILS, THUMBNAIL_WIDTH = 8, 200


@dataclass(frozen=True)
class AuditedEpisode:
    """What the page shows of one episode. Without a readable recording there is no strip, only the findings."""

    name: str
    metadata: EpisodeMetadata | None
    kind: str
    split: str
    figures: EpisodeFigures | None
    findings: list[Finding]
    strip: Strip | None = None
    thumbnails: dict[str, list[tuple[str, str]]] | None = None      # camera -> (time, picture as data URL)

    @property
    def verdict(self) -> str:
        levels = {finding.level for finding in self.findings}
        return "no-go" if "no-go" in levels else "look" if levels else "go"


@dataclass(frozen=True)
class AuditReport:
    out: Path
    episodes: list[AuditedEpisode]

    @property
    def no_go(self) -> list[AuditedEpisode]:
        return [episode for episode in self.episodes if episode.verdict == "no-go"]

    def text(self) -> str:
        counts = Counter(episode.verdict for episode in self.episodes)
        lines = [f"{self.out}: {len(self.episodes)} episodes: {counts['go']} go, {counts['look']} to look at, "
                 f"{counts['no-go']} no-go"]
        lines += [f"  {finding.level} {episode.name}: {finding.text}" for episode in self.episodes
                  for finding in episode.findings]
        return "\n".join(lines)


def audit(contract: Contract | None, sources: list[Path], out: Path, allow_unstamped: bool = False) -> AuditReport:
    """Audit datasets and bags into the page `out`. contract: what bags are held to; a dataset brings its own.

    Raises DataError when there is nothing to audit.
    """
    episodes, held_to = [], []
    for source in sources:
        if (source / SIDECAR).is_file():
            own = contract_from_json(read_editable_sidecar(source)["contract"], str(source))
            held_to.append(own)
            episodes += [_of_dataset(own, packed) for packed in packed_episodes(source)]
            continue
        bags = find_episodes(source)
        if not bags:
            raise DataError(f"{source}: neither a dataset nor a directory of finished episodes")
        held_to.append(contract)
        episodes += [_of_bag(contract, examine_bag(contract, bag, allow_unstamped)) for bag in bags]
    write_page("audit.html.j2", out, title=f"Audit of {', '.join(source.name for source in sources)}", episodes=episodes,
               contracts=sorted({f"{contract.name} {contract.hash}" for contract in held_to}), summary=_summary(episodes))
    return AuditReport(out, episodes)


def _summary(episodes: list[AuditedEpisode]) -> dict:
    measured = [episode.figures for episode in episodes if episode.figures]
    ticks = sum(figures.ticks for figures in measured)
    return {
        "counts": Counter(episode.verdict for episode in episodes), "ticks": ticks,
        "minutes": sum(figures.duration_s for figures in measured) / 60,
        "idle": sum(figures.idle_share * figures.ticks for figures in measured) / max(1, ticks),
        "saturated": sum(figures.saturation["any"] * figures.ticks for figures in measured) / max(1, ticks),
        "refused": sum(figures.refused for figures in measured),
        "instructions": sorted(Counter(e.metadata.instruction for e in episodes if e.metadata).items()),
    }


# -- bags

def _of_bag(contract: Contract, examined: Examined) -> AuditedEpisode:
    common = {"name": examined.name, "metadata": examined.metadata, "figures": examined.figures, "split": "",
              "findings": examined.findings, "kind": "recording"}
    if examined.alignment is None:
        return AuditedEpisode(**common)
    episode, streams = examined.alignment.episode, examined.streams
    period_s, zero_ns = contract.control_period_s, examined.alignment.ticks_ns[0]
    strip = Strip(examined.figures.duration_s)
    joint = contract.robot.gripper_joint
    opening = Samples(streams.joint_states.stamps_ns, [contract.robot.gripper_opening(positions[names.index(joint)])
                                                       for names, positions in streams.joint_states.values])
    _add_rows(strip, contract, episode, _seconds(episode.stamps_ns, zero_ns), _curve(streams.gripper, zero_ns),
              _curve(opening, zero_ns))
    for begin_s, end_s in spans(_seconds([tick for tick, _ in examined.alignment.refused], zero_ns),
                                np.ones(len(examined.alignment.refused)), period_s):
        strip.add_band("gap", begin_s, end_s)
    if any(segment.source == "policy" for segment in examined.segments):
        for segment in examined.segments:
            strip.add_band("correction" if segment.source == "operator" else "policy",
                           *_seconds([segment.start_ns, segment.end_ns], zero_ns))
    try:
        pictures = {camera: _thumbnails(images, _seconds(episode.stamps_ns, zero_ns)) for camera, images in
                    episode.images.items()}
    except DataError as error:      # an image that breaks the contract is only seen when it is decoded
        return AuditedEpisode(**common | {"findings": [Finding("no-go", str(error), True), *examined.findings]}, strip=strip)
    return AuditedEpisode(**common, strip=strip, thumbnails=pictures)


# -- datasets

def _of_dataset(contract: Contract, packed: PackedEpisode) -> AuditedEpisode:
    times_s, period_s = _seconds(packed.stamps_ns, int(packed.stamps_ns[0])), contract.control_period_s
    strip = Strip(float(times_s[-1]) + period_s)
    names = contract.proprioception_names
    measured = packed.proprioception[:, names.index("gripper")] if "gripper" in names else None
    _add_rows(strip, contract, packed, times_s, (times_s, packed.actions[:, 6]),
              None if measured is None else (times_s, measured))
    for before, after in itertools.pairwise(times_s):
        if after - before > 1.5 * period_s:
            strip.add_band("gap", before + period_s, after)
    figures = figures_of_columns(contract, packed)
    return AuditedEpisode(
        packed.metadata.episode, packed.metadata, packed.record.get("kind", ""), packed.record.get("split", ""), figures,
        findings(contract, packed.metadata, figures), strip,
        {camera: _thumbnails(_Decoding(files), times_s) for camera, files in packed.images.items()})


def figures_of_columns(contract: Contract, packed: PackedEpisode) -> EpisodeFigures:
    """The figures of a dataset's episode: from its columns, and what only the bag could show as the build recorded it."""
    times_s = _seconds(packed.stamps_ns, int(packed.stamps_ns[0]))
    names = contract.proprioception_names
    if "x" in names:
        positions = packed.proprioception[:, [names.index(axis) for axis in "xyz"]].astype(np.float64)
    else:
        positions = np.cumsum(packed.actions[:, :3], axis=0, dtype=np.float64)
    gripper = None
    if "gripper" in names:
        gripper = gripper_check(times_s, packed.actions[:, 6].astype(np.float64), times_s,
                                packed.proprioception[:, names.index("gripper")].astype(np.float64))
    seen = EpisodeFigures(
        ticks=len(packed), duration_s=float(times_s[-1]) + contract.control_period_s, refused=0, refused_reason="",
        **action_figures(contract, packed.actions), age_p95_s=age_figures(contract, packed.ages_s),
        frozen_s={camera: longest_frozen_s(times_s, _repeated(files), times_s, positions, FROZEN_TRAVEL_M)
                  for camera, files in packed.images.items()}, gripper=gripper)
    if "figures" not in packed.record:
        return seen
    recorded = from_mapping(EpisodeFigures, packed.record["figures"], packed.metadata.episode)
    return replace(seen, refused=recorded.refused, refused_reason=recorded.refused_reason, bias=recorded.bias,
                   idle_share=recorded.idle_share, streams=recorded.streams, recorder=recorded.recorder)


def _repeated(files: list[bytes]) -> np.ndarray:
    """bool [T]: the picture equals the one before; equal pixels give equal files."""
    return np.array([False, *(a == b for a, b in itertools.pairwise(files))])


class _Decoding:
    """PNG files that decode when asked for."""

    def __init__(self, files: list[bytes]):
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> np.ndarray:
        return decode_png(self._files[index])


# -- both

def _add_rows(strip: Strip, contract: Contract, episode, times_s: np.ndarray, commanded: tuple, measured: tuple | None) -> None:
    """Traces of an aligned or packed episode; `times_s` of its ticks. commanded, measured: (times, openings)."""
    limits = contract.action.high
    ends_s = np.append(times_s, times_s[-1] + contract.control_period_s)
    held = np.concatenate([episode.actions, episode.actions[-1:]])      # an action lasts for its tick
    for title, columns in (("translation", range(3)), ("rotation", range(3, 6))):
        strip.add_row(f"{title}, share of limit", -1, 1, [
            (contract.action.names[column], COLORS[k], *_steps(ends_s, held[:, column] / limits[column]))
            for k, column in enumerate(columns)])
    curves = [("gripper commanded", INK, *_steps(*commanded))]
    if measured is not None:
        curves.append(("measured", COLORS[1], *measured, True))
    strip.add_row("gripper opening", 0, 1, curves)
    allowed_s = max(*(camera.max_age_s for camera in contract.cameras.values()), contract.topics.state_max_age_s)
    strip.add_row("age at tick", 0, 1000 * allowed_s, [
        *((name, COLORS[k], times_s, 1000 * episode.ages_s[:, k]) for k, name in enumerate(contract.cameras)),
        ("state", GREY, times_s, 1000 * episode.ages_s[:, -1])], " ms")
    for begin_s, end_s in spans(times_s, idle_ticks(episode.actions), contract.control_period_s):
        strip.add_band("idle", begin_s, end_s)


def _steps(times_s, values) -> tuple[np.ndarray, np.ndarray]:
    """A command holds until the next one."""
    return np.repeat(times_s, 2)[1:], np.repeat(values, 2)[:-1]


def _curve(samples: Samples, zero_ns: int) -> tuple[np.ndarray, np.ndarray]:
    return _seconds(samples.stamps_ns, zero_ns), np.array(samples.values)


def _seconds(stamps_ns, zero_ns: int) -> np.ndarray:
    return (np.asarray(stamps_ns, np.int64) - zero_ns) * 1e-9


def _thumbnails(images, times_s: np.ndarray) -> list[tuple[str, str]]:
    chosen = sorted({round(index) for index in np.linspace(0, len(images) - 1, THUMBNAILS)})
    return [(f"{times_s[index]:.1f} s", _jpeg_url(images[index])) for index in chosen]


def _jpeg_url(image: np.ndarray) -> str:
    from PIL import Image

    picture = Image.fromarray(image)
    picture.thumbnail((THUMBNAIL_WIDTH, THUMBNAIL_WIDTH))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return data_url(buffer.getvalue(), "image/jpeg")
