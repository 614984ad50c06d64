"""The list of recorded episodes, newest first. Reads only what changed since the last look."""

from pathlib import Path

from rlco_teleop.bags import find_episodes, read_audit, read_episode_metadata

MOST_SHOWN = 100


class EpisodeList:
    """Episodes below a directory, as plain data for the page."""

    def __init__(self, root: Path):
        self._root = root
        self._known: dict[Path, tuple[int, dict]] = {}

    def read(self) -> dict:
        """{"total", "successes", "episodes": newest first, at most MOST_SHOWN}. A bag that cannot be read says why."""
        bags = find_episodes(self._root) if self._root.is_dir() else []
        entries = {}
        for bag in bags:
            try:
                changed_ns = (bag / "metadata.yaml").stat().st_mtime_ns
            except FileNotFoundError:
                continue        # moved away meanwhile
            known = self._known.get(bag)
            entries[bag] = known if known and known[0] == changed_ns else (changed_ns, _describe(bag))
        self._known = entries
        newest = sorted((entry for entry in entries.values()), key=lambda entry: entry[0], reverse=True)
        return {"total": len(newest), "successes": sum(entry["success"] is True for _, entry in newest),
                "episodes": [entry for _, entry in newest[:MOST_SHOWN]]}


def _describe(bag: Path) -> dict:
    try:
        metadata, audit = read_episode_metadata(bag), read_audit(bag)
    except Exception as error:      # whatever a broken bag raises, the list goes on and shows it
        return {"name": bag.name, "success": None, "problem": f"unreadable: {error}"}
    return {"name": bag.name, "task": metadata.task, "instruction": metadata.instruction, "domain": metadata.domain,
            "operator": metadata.operator, "success": metadata.success, "repaired": metadata.repaired,
            "audit": None if audit is None else {"verdict": audit.verdict, "go": audit.go, "reasons": list(audit.reasons)}}
