"""`rlco demo`: the whole method on the stand-in robot."""

from pathlib import Path

from rlco_trainer.commands.base import command


def add(commands) -> None:
    def run(options):
        from rlco_trainer.demo import SCALES, run_demo

        run_demo(options.out, SCALES[options.scale], fresh=options.fresh)

    parser = command(commands, "demo", run, "run the whole method on the stand-in robot and write a report")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="directory of everything it makes")
    parser.add_argument("--scale", choices=["full", "mini"], default="full",
                        help="full: the demo; mini: the same steps, too small to learn, for a check of two minutes")
    parser.add_argument("--fresh", action="store_true", help="start over instead of going on where a stopped demo was")
