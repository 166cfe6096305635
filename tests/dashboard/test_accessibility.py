"""axe-core finds nothing serious on any tab, in light and dark, at three widths.

``npm install --no-save axe-core@4`` brings it; CTPLAB_AXE names another place.
"""

import os
from pathlib import Path

import pytest

AXE = Path(os.environ.get("CTPLAB_AXE", Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"))
TABS = ("Compare", "Prompt tokens", "Similarity", "Compress", "Train", "Results", "Latency")
FOUND = """async () => (await axe.run(document, {resultTypes: ["violations"]})).violations
  .filter((v) => ["serious", "critical"].includes(v.impact))
  .flatMap((v) => v.nodes.map((n) => `${v.id}: ${n.html.slice(0, 160)} | ${n.failureSummary.slice(0, 220)}`))"""

DRAWN = """() => ![...document.querySelectorAll('[aria-label="Empty value"]')].some((e) => e.offsetParent)"""
"""A plot that is not there yet is an empty box of gradio's, which axe-core objects to."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not AXE.is_file(), reason="needs axe-core: npm install --no-save axe-core@4"),
]


def opened(page, name):
    """Show a tab; narrow pages keep some of them in a menu."""
    if page.get_by_role("tab", name=name, exact=True).count():
        page.get_by_role("tab", name=name, exact=True).click()
    else:
        page.locator("#tabs .overflow-menu > button").first.click()
        page.locator("#tabs .overflow-menu button", has_text=name).last.click()
    page.wait_for_timeout(3000)
    page.wait_for_function(DRAWN)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1440, 1024, 390])
def test_nothing_serious_is_found(visit, real, width, dark):
    page = visit(real, width=width, dark=dark)
    page.add_script_tag(path=str(AXE))
    page.click("#generate")
    page.wait_for_selector("#answers [aria-busy=false]")
    page.locator("#view").get_by_label("Surprisal").check()
    page.wait_for_selector("#arm-soft .tok")
    wrong = {}
    for name in TABS:
        opened(page, name)
        wrong |= {f"{name}: {line}": 1 for line in page.evaluate(FOUND)}
    assert not wrong, "\n".join(wrong)
