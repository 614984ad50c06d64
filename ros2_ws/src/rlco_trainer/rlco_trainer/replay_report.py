"""`rlco twin replay`: a recorded episode played again in a twin, and a page that shows how far the two differ."""

from pathlib import Path

import numpy as np

from rlco_common.contract import Contract
from rlco_common.episode import EVENT_TOPIC, event_from_json
from rlco_common.errors import DataError
from rlco_sim_bridge.replay import Recording, Replay, Track, replay
from rlco_sim_bridge.variation import variation_from_text
from rlco_sim_bridge.view import joined
from rlco_teleop.bags import Bag, read_episode_metadata
from rlco_trainer.dataset.build import read_streams
from rlco_trainer.pages import curve_url, picture_url, write_page

PICTURES = 6
RECORDED, SIMULATED = "#8a8f98", "#2f6db3"


def replay_bag(contract: Contract, bag: Path, domain: str, out: Path) -> str:
    """Play `bag` in `domain`, write the page `out`, return its figures as text. Raises DataError on an unusable bag."""
    streams = read_streams(contract, bag)
    if not len(streams.targets):
        raise DataError(f"{bag}: no commands on {contract.topics.target_pose}; there is nothing to replay")
    recording = read_recording(contract, bag, streams)
    camera = next(iter(contract.cameras))
    images = streams.images[camera]
    chosen = sorted({round(index) for index in np.linspace(0, len(images) - 1, PICTURES)}) if len(images) else []
    metadata = read_episode_metadata(bag)
    played = replay(contract, recording, domain, variation=variation_from_text(metadata.variation, str(bag)),
                    pictures_ns=[images.stamps_ns[index] for index in chosen])
    pictures = []
    for index in chosen:
        stamp_ns = images.stamps_ns[index]
        time_s = (stamp_ns - recording.begin_ns) / 1e9
        pair = [_decoded(images.values[index]), played.pictures[stamp_ns][camera]]
        pictures.append((f"{time_s:.1f} s: recorded, simulated", joined(pair, axis=1),
                         float(np.abs(pair[0].astype(int) - pair[1]).mean())))
    write_page("replay.html.j2", out, title=f"{bag.name} replayed in '{played.domain}'", metadata=metadata, played=played,
               figures=_figures(played), plots=_plots(played),
               pictures=[(f"{caption}; mean difference {gap:.0f} of 255", picture_url(picture))
                         for caption, picture, gap in pictures])
    return "\n".join([f"{bag.name} ({metadata.domain}) replayed in '{played.domain}': {out}",
                      *(f"  {name:<36}{value}" for name, value in _figures(played))])


def read_recording(contract: Contract, bag: Path, streams=None) -> Recording:
    """The commands and measurements of an episode bag. Its start is the stamp of its reset event, when it has one."""
    streams = streams or read_streams(contract, bag)
    metadata = read_episode_metadata(bag)
    with Bag(bag) as opened:
        events = [event_from_json(item.message.data, str(bag)) for item in opened.messages(EVENT_TOPIC)]
    resets = [event.stamp_ns for event in events if event.kind == "reset" and event.stamp_ns]
    gripper = contract.robot.gripper_joint
    openings = [contract.robot.gripper_opening(positions[names.index(gripper)]) for names, positions in
                streams.joint_states.values]
    return Recording(
        task=metadata.task, seed=metadata.seed, start_ns=resets[-1] if resets else None,
        targets=Track(streams.targets.stamps_ns, np.array([pose.as_array() for pose in streams.targets.values])),
        gripper=Track(streams.gripper.stamps_ns, np.array(streams.gripper.values)),
        ee_pose=Track(streams.ee_pose.stamps_ns, np.array([pose.as_array() for pose in streams.ee_pose.values])),
        opening=Track(streams.joint_states.stamps_ns, np.array(openings)))


def _figures(played: Replay) -> list[tuple[str, str]]:
    summary, lag = played.summary(), played.lag
    return [
        ("position error, r.m.s. / largest", f"{1e3 * summary['rms_position_m']:.1f} / "
                                             f"{1e3 * summary['largest_position_m']:.1f} mm"),
        ("rotation error, r.m.s. / largest", f"{np.degrees(summary['rms_rotation_rad']):.2f} / "
                                             f"{np.degrees(summary['largest_rotation_rad']):.2f} degrees"),
        ("gripper error, r.m.s. / largest", f"{summary['rms_opening']:.2f} / {summary['largest_opening']:.2f} of its opening"),
        ("the recorded arm is later by", "unknown: it takes 0.8 s of motion" if lag is None else
         f"{1e3 * lag.lag_s:.0f} ms (correlation {lag.correlation:.3f}); arm.delay_s of a domain takes it up"),
        ("in the twin the episode ended with", "success" if played.result.success else
         "failure" if played.result.failure else "neither success nor failure"),
        ("targets out of the arm's reach", str(played.unreached_targets)),
    ]


def _plots(played: Replay) -> list[tuple[str, str]]:
    recording = played.recording
    measured, simulated = recording.ee_pose, played.simulated

    def points(stamps_ns, values):
        return list(zip(((stamps_ns - recording.begin_ns) / 1e9).tolist(), np.asarray(values).tolist(), strict=True))

    plots = [("Distance between the two tools", curve_url(
        {"position": (points(measured.stamps_ns, 1e3 * played.position_error_m), SIMULATED)}, "time, s", "error, mm"))]
    plots.append(("Angle between the two tools", curve_url(
        {"rotation": (points(measured.stamps_ns, np.degrees(played.rotation_error_rad)), SIMULATED)}, "time, s",
        "error, degrees")))
    plots += [(f"Tool along {axis}", curve_url(
        {"recorded": (points(measured.stamps_ns, measured.values[:, i]), RECORDED),
         "simulated": (points(simulated.stamps_ns, simulated.values[:, i]), SIMULATED)}, "time, s", f"{axis}, m",
        from_zero=False))
        for i, axis in enumerate("xyz")]
    plots.append(("Gripper", curve_url(
        {"recorded": (points(recording.opening.stamps_ns, recording.opening.values[:, 0]), RECORDED),
         "simulated": (points(played.opening.stamps_ns, played.opening.values[:, 0]), SIMULATED)}, "time, s", "opening")))
    return plots


def _decoded(value) -> np.ndarray:
    return value() if callable(value) else value
