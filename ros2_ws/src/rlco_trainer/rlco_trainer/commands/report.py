"""`rlco report`: one page of what runs hold."""

from pathlib import Path

from rlco_trainer.commands.base import command, contract_option


def add(commands) -> None:
    def run(options):
        from rlco_common.contract import load_contract
        from rlco_trainer.collect import collect
        from rlco_trainer.report import write_report

        out = options.out or (options.runs[0] if options.runs[0].is_dir() else options.runs[0].parent) / "report.html"
        title = options.title or f"Evaluation of {', '.join(str(run) for run in options.runs)}"
        print(write_report(collect(options.runs, load_contract(options.contract), title), out))
        print(f"page: {out}")

    parser = command(commands, "report", run, "one self-contained page of trials, intervals, curves, films and lineage")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN",
                        help="folder of an evaluation, deployment, training run or demo, or a file of records")
    parser.add_argument("--out", type=Path, default=None, help="the page; default: report.html in the first folder")
    parser.add_argument("--title", default="", help="its title; default: the folders' names")
    contract_option(parser)
