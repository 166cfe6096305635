"""Take the dashboard's screenshots anew: ``python docs/take_screenshots.py http://127.0.0.1:7860`` (a running one)."""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]


def ask(page: Page, question: str) -> None:
    """Type a question, generate and wait for all answers."""
    page.fill("#question textarea", question)
    page.click("#generate")
    page.wait_for_selector("#answers [aria-busy=false]")
    page.mouse.move(0, 0)
    page.wait_for_timeout(1500)


def worths(page: Page) -> None:
    """Measure what each row is worth, and put one in view."""
    page.click("#worth-box > button")
    page.click("#worth-go")
    page.wait_for_function(
        'document.querySelector("#worth-told").innerText.includes("The whole prompt")', timeout=600_000
    )
    page.locator("#tokens [data-testid=cell-3-1]").click()
    page.wait_for_timeout(4000)


def main(address: str) -> None:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)

        def opened(width: int, height: int, dark: bool = False) -> Page:
            page = browser.new_page(
                viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
            )
            page.set_default_timeout(60_000)
            page.goto(address)
            page.wait_for_selector("#generate")
            page.wait_for_timeout(2000)
            return page

        def shot(page: Page, name: str, whole: bool = False) -> None:
            page.screenshot(path=HERE / f"{name}.png", full_page=whole)

        page = opened(1360, 1150)
        ask(page, "Where is Long Beach?")
        shot(page, "compare")
        page.locator("#view").get_by_label("KL to full").check()
        page.wait_for_selector("#arm-soft .tok")
        page.locator("#arm-soft .tok").last.click()
        page.wait_for_timeout(500)
        shot(page, "compare-lens", whole=True)
        page.get_by_role("tab", name="Many questions").click()
        page.fill("#many-limit input", "200")
        page.click("#many-go")
        page.wait_for_selector("#many-job [data-state=done]", timeout=600_000)
        page.wait_for_timeout(3000)
        page.click("#many-surprise")
        page.wait_for_selector("#many-cards .arm")
        page.wait_for_timeout(1500)
        shot(page, "compare-many", whole=True)
        for name, sign in (
            ("Prompt tokens", "#map .main-svg"),
            ("Similarity", "#histogram .main-svg"),
            ("Results", "#results-told, #exact .main-svg"),
        ):
            page.get_by_role("tab", name=name).click()
            page.wait_for_selector(sign)
            page.wait_for_timeout(2500)
            if name == "Prompt tokens":
                worths(page)
            shot(page, name.lower().replace(" ", "-"), whole=True)
        page = opened(390, 844)
        ask(page, "Where is Long Beach?")
        shot(page, "compare-narrow", whole=True)
        page = opened(1360, 1150, dark=True)
        ask(page, "Where is Long Beach?")
        shot(page, "compare-dark")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:7860")
