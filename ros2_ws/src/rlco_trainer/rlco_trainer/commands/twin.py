"""`rlco twin`: look at twins, line their camera up with a real one, replay recorded commands in them."""

from pathlib import Path

from rlco_common.errors import DataError
from rlco_trainer.commands.base import chosen_variation, command, contract_option, variation_option


def add(commands) -> None:
    tools = command(commands, "twin", None, "look at twins, and compare them with a real table").add_subparsers(
        title="twin commands", metavar="COMMAND", required=True)
    _view(tools)
    _grid(tools)
    _compare(tools)
    _align(tools)
    _replay(tools)


def _scene_options(parser) -> None:
    parser.add_argument("--domain", default="twin", help="twin, standin, or the path of a domain YAML")
    parser.add_argument("--seed", type=int, default=0, help="seed of the initial state")
    variation_option(parser)
    contract_option(parser)


def _open(options):
    from rlco_common.contract import load_contract
    from rlco_sim_bridge.twin import Twin

    twin = Twin(load_contract(options.contract), options.task, options.domain, variation=chosen_variation(options))
    twin.reset(options.seed)
    return twin


def _save(path: Path, picture) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    print(path)


def _view(tools) -> None:
    def run(options):
        import numpy as np
        from PIL import Image

        from rlco_common.observation import encode_image
        from rlco_sim_bridge.view import captioned, joined

        twin = _open(options)
        camera = next(iter(twin.contract.cameras))
        seen = encode_image(twin.observe().images[camera], options.policy_size)
        enlarged = np.asarray(Image.fromarray(seen).resize((480, 480), Image.Resampling.NEAREST))
        _save(options.out, captioned(joined([twin.picture(640, 480), enlarged], axis=1),
                                     f"{options.task} / {twin.domain.name} / seed {options.seed}: {twin.instruction}"))
        twin.close()

    parser = command(tools, "view", run, "write a picture of a scene, and of what a policy sees of it")
    parser.add_argument("task", help="task of the contract, for example pick_place")
    parser.add_argument("--out", type=Path, default=Path("twin.png"), help="picture to write")
    parser.add_argument("--policy-size", type=int, default=64, help="side of the policy's image, pixels")
    _scene_options(parser)


def _grid(tools) -> None:
    def run(options):
        from rlco_common.contract import load_contract
        from rlco_sim_bridge.tasks import TASKS
        from rlco_sim_bridge.variation import variation_from_text
        from rlco_sim_bridge.view import task_grid

        columns = [(domain, variation_from_text(text))
                   for domain, _, text in (column.partition(":") for column in options.columns)]
        _save(options.out, task_grid(load_contract(options.contract), list(TASKS), columns, options.seed))

    parser = command(tools, "grid", run, "write a picture of all tasks in all domains")
    parser.add_argument("--out", type=Path, default=Path("grid.png"), help="picture to write")
    parser.add_argument("--columns", nargs="+", metavar="DOMAIN[:VARIATION]", help="domains, each with a variation if wanted",
                        default=["twin", "standin", "twin:objects=unseen", "twin:start=perturbed", "twin:camera=1.0",
                                 "twin:light=1.0"])
    parser.add_argument("--seed", type=int, default=0, help="seed of the initial state")
    contract_option(parser)


def _compare(tools) -> None:
    def run(options):
        from rlco_sim_bridge.domain import comparison_table, load_domain

        print(comparison_table([load_domain(source) for source in options.domains]))

    parser = command(tools, "compare", run, "print every number in which domains differ, as a markdown table")
    parser.add_argument("domains", nargs="*", default=["twin", "standin"], help="names or paths of domain YAMLs")


def _align(tools) -> None:
    def run(options):
        import numpy as np
        from PIL import Image, UnidentifiedImageError

        from rlco_sim_bridge.camera_fit import fit_camera, overlay

        try:
            photograph = np.asarray(Image.open(options.image).convert("RGB"))
        except (OSError, UnidentifiedImageError) as error:
            raise DataError(f"{options.image}: not a picture: {error}") from error
        height, width = photograph.shape[:2]
        twin = _open(options)
        view = None
        if options.point:
            marks = np.array([_mark(text) for text in options.point])
            fit = fit_camera(twin.camera_view(next(iter(twin.contract.cameras))), marks[:, 2:], marks[:, :2], width, height)
            view = fit.view
            print(f"reprojection error: mean {fit.errors_px.mean():.2f}, largest {fit.errors_px.max():.2f} pixels. Put into "
                  f"the domain:\n  eye_m: {_numbers(view.eye_m)}\n  target_m: {_numbers(view.target_m)}\n"
                  f"  fov_rad: {view.fov_rad:.4f}\n  roll_rad: {view.roll_rad:.4f}")
        _save(options.out, overlay(photograph, twin.picture(width, height, view=view)))
        twin.close()

    parser = command(tools, "align", run, "overlay a photograph of the real camera on the rendering: outlines, mix, rendering")
    parser.add_argument("task", help="task whose camera it is, for example push_cube")
    parser.add_argument("image", type=Path, help="photograph from the real camera, in any size")
    parser.add_argument("--point", action="append", metavar="U,V,X,Y,Z", help="a pixel of the photograph and the point of the "
                        "robot's base frame (metres) that it shows; four or more fit the camera's pose, seven or more its "
                        "field of view too")
    parser.add_argument("--out", type=Path, default=Path("align.png"), help="picture to write")
    _scene_options(parser)


def _mark(text: str) -> list[float]:
    try:
        values = [float(value) for value in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 5:
        raise DataError(f"--point {text}: expected five numbers U,V,X,Y,Z (pixels, then metres in the base frame)")
    return values


def _numbers(values) -> str:
    return "[" + ", ".join(f"{value:.4f}" for value in values) + "]"


def _replay(tools) -> None:
    def run(options):
        from rlco_common.contract import load_contract
        from rlco_trainer.replay_report import replay_bag

        print(replay_bag(load_contract(options.contract), options.bag, options.domain, options.out))

    parser = command(tools, "replay", run, "play the commands of a recorded bag in a twin, and report how far the two differ")
    parser.add_argument("bag", type=Path, help="episode bag")
    parser.add_argument("--domain", default="twin", help="twin, standin, or the path of a domain YAML")
    parser.add_argument("--out", type=Path, default=Path("replay.html"), help="page to write")
    contract_option(parser)
