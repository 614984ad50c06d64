"""Write every generated reference page: python -m rlco_trainer.reference DOCS_DIRECTORY."""

import sys
from pathlib import Path

from rlco_trainer.reference.pages import PAGES


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m rlco_trainer.reference DOCS_DIRECTORY", file=sys.stderr)
        return 2
    for name, make in PAGES.items():
        path = Path(arguments[0]) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(make(), encoding="utf-8")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
