"""`rlco dataset`: from bags to datasets, and what one does with these."""

from pathlib import Path

from rlco_trainer.commands.base import command, contract_option


def add(commands) -> None:
    tools = command(commands, "dataset", None, "build datasets from bags, audit, merge, split and publish them").add_subparsers(
        title="dataset commands", metavar="COMMAND", required=True)
    for tool in (_build, _audit, _info, _merge, _split, _push):
        tool(tools)


def _build(tools) -> None:
    def run(options):
        from rlco_common.contract import load_contract
        from rlco_trainer.dataset.build import BuildOptions, build_dataset
        from rlco_trainer.dataset.splits import SplitRule

        report = build_dataset(
            load_contract(options.contract), options.bags, options.out,
            options=BuildOptions(options.keep_policy, options.ignore_audit, options.allow_unstamped),
            split=SplitRule(options.held_out, options.split_seed), workers=options.workers, overwrite=options.overwrite)
        print(report.text())

    parser = command(tools, "build", run, "make a LeRobot v3 dataset from recorded bags; goes on where it was stopped")
    parser.add_argument("bags", nargs="+", type=Path, help="episode bags, or directories that hold them")
    parser.add_argument("--out", type=Path, required=True, help="directory of the dataset")
    parser.add_argument("--held-out", type=float, default=0.1, help="share of the recordings to hold out of training")
    parser.add_argument("--split-seed", type=int, default=0, help="another seed holds out other recordings")
    parser.add_argument("--keep-policy", action="store_true",
                        help="of a deployment, take the policy's own successful segments as well")
    parser.add_argument("--ignore-audit", action="store_true",
                        help="take episodes that the audit refuses; what breaks the contract stays out")
    parser.add_argument("--allow-unstamped", action="store_true",
                        help="where a driver leaves the stamp zero, take the time of recording")
    parser.add_argument("--workers", type=int, default=0, help="bags at a time; 0: one for each core")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing dataset")
    contract_option(parser)


def _audit(tools) -> None:
    def run(options):
        from rlco_common.contract import load_contract
        from rlco_trainer.dataset.audit import audit

        report = audit(load_contract(options.contract), options.sources, options.out, options.allow_unstamped)
        print(report.text())
        return 1 if report.no_go else 0

    parser = command(tools, "audit", run, "judge every episode of a dataset or of bags, on one page; exit status 1 on a no-go")
    parser.add_argument("sources", nargs="+", type=Path, help="datasets, episode bags, or directories of bags")
    parser.add_argument("--out", type=Path, required=True, help="the HTML page to write")
    parser.add_argument("--allow-unstamped", action="store_true", help="as in 'rlco dataset build'")
    contract_option(parser)


def _info(tools) -> None:
    def run(options):
        from rlco_trainer.dataset.info import describe_dataset, verify_dataset

        print(describe_dataset(options.dataset))
        if not options.verify:
            return 0
        verification = verify_dataset(options.dataset)
        print(verification.text())
        return 1 if verification.changed else 0

    parser = command(tools, "info", run, "print what a dataset holds and where it comes from")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--verify", action="store_true",
                        help="compute all hashes again, of the content and of the bags that are still there; exit status 1 "
                        "when something changed")


def _merge(tools) -> None:
    def run(options):
        from rlco_trainer.dataset.edit import merge_datasets

        frames = merge_datasets(options.datasets, options.out, overwrite=options.overwrite)
        print(f"{options.out}: {len(options.datasets)} datasets, {frames} ticks")

    parser = command(tools, "merge", run, "make one dataset of several that share a contract")
    parser.add_argument("datasets", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="directory of the merged dataset")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing dataset")


def _split(tools) -> None:
    def run(options):
        from rlco_trainer.dataset.edit import Filter, split_dataset

        chosen = Filter(options.split, options.task, options.instruction, options.kind, options.domain, options.operator,
                        _seeds(options.seeds), tuple(options.episode))
        matching, others = split_dataset(options.dataset, chosen, options.out, options.rest, overwrite=options.overwrite)
        print(f"{options.out}: {matching} episodes ({chosen.text()})")
        if options.rest is not None:
            print(f"{options.rest}: {others} episodes")

    parser = command(tools, "split", run, "copy some episodes of a dataset into a dataset of their own")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="directory for the chosen episodes")
    parser.add_argument("--rest", type=Path, help="directory for the other episodes")
    parser.add_argument("--split", choices=("train", "held_out"), default="", help="episodes of this part")
    parser.add_argument("--task", default="", help="episodes of this task")
    parser.add_argument("--instruction", default="", help="episodes whose instruction contains this text")
    parser.add_argument("--kind", choices=("demonstration", "correction", "policy", "simulated"), default="",
                        help="episodes of this kind")
    parser.add_argument("--domain", default="", help="episodes recorded in this domain")
    parser.add_argument("--operator", default="", help="episodes of this operator")
    parser.add_argument("--seeds", default="", help="episodes with seeds in this range, FIRST:LAST")
    parser.add_argument("--episode", action="append", default=[], help="the episode or bag of this name; may be repeated")
    parser.add_argument("--overwrite", action="store_true", help="replace existing datasets")


def _seeds(text: str) -> tuple[int, int] | None:
    from rlco_common.errors import ConfigError

    if not text:
        return None
    first, _, last = text.partition(":")
    try:
        return int(first), int(last or first)
    except ValueError as error:
        raise ConfigError(f"--seeds {text}: give FIRST:LAST, for example 20000:20009") from error


def _push(tools) -> None:
    def run(options):
        from rlco_trainer.dataset.push import dry_run, push_dataset

        if options.dry_run:
            print(dry_run(options.dataset, options.repo_id, license_id=options.license))
        else:
            print(push_dataset(options.dataset, options.repo_id, private=options.private, license_id=options.license))

    parser = command(tools, "push", run, "upload a dataset to the Hugging Face hub, with a card")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("repo_id", help="OWNER/NAME on the hub")
    parser.add_argument("--dry-run", action="store_true", help="write the card, list what would be uploaded, ask no network")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--license", default="apache-2.0", help="license of the dataset, an identifier of the hub")
