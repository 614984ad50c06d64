"""What the documentation says is what the code says."""

import re
from pathlib import Path

from rlco_sim_bridge.domain import comparison_table, load_domain

DOCS = Path(__file__).resolve().parent.parent / "docs"


def test_the_table_of_the_domains_is_the_present_one():
    text = (DOCS / "twins.md").read_text(encoding="utf-8")
    table = re.search(r"<!-- domains -->\n(.*?)<!-- /domains -->", text, re.DOTALL).group(1).strip()
    assert table == comparison_table([load_domain("twin"), load_domain("standin")])


def test_every_picture_and_page_that_the_documentation_links_to_exists():
    for page in (*DOCS.rglob("*.md"), DOCS.parent / "README.md"):
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
