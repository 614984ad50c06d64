"""What the documentation says is what the code says."""

import re
from pathlib import Path

from rclpy.qos import DurabilityPolicy, HistoryPolicy, ReliabilityPolicy

from rlco_common.contract import load_contract
from rlco_common.ros import QOS
from rlco_common.topic_table import QOS_REASONS
from rlco_sim_bridge.domain import comparison_table, load_domain
from rlco_trainer.contract_page import FIELDS, contract_page, leaves

DOCS = Path(__file__).resolve().parent.parent / "docs"


def test_the_table_of_the_domains_is_the_present_one():
    text = (DOCS / "twins.md").read_text(encoding="utf-8")
    table = re.search(r"<!-- domains -->\n(.*?)<!-- /domains -->", text, re.DOTALL).group(1).strip()
    assert table == comparison_table([load_domain("twin"), load_domain("standin")])


def test_the_page_of_the_contract_is_the_present_one():
    page = (DOCS / "contract.md").read_text(encoding="utf-8")
    assert page == contract_page(load_contract()), "run python -m rlco_trainer.contract_page > docs/contract.md"


def test_the_page_of_the_contract_explains_every_field_and_no_other():
    from rlco_common.strict import to_mapping

    assert {path for path, _ in leaves(to_mapping(load_contract()))} == set(FIELDS)


def test_what_the_page_says_of_the_qos_is_what_it_is():
    assert set(QOS) == set(QOS_REASONS)
    for name, qos in QOS.items():
        assert qos.history == HistoryPolicy.KEEP_LAST and f"keep last {qos.depth}" in QOS_REASONS[name]
        assert (qos.reliability == ReliabilityPolicy.RELIABLE) == ("reliable" in QOS_REASONS[name])
        assert (qos.durability == DurabilityPolicy.TRANSIENT_LOCAL) == ("transient local" in QOS_REASONS[name])


def test_every_picture_and_page_that_the_documentation_links_to_exists():
    for page in (*DOCS.rglob("*.md"), DOCS.parent / "README.md"):
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
