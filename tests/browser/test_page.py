"""The page in a browser: models, faults of the service, accessibility, bars and plots."""

import hashlib
import json

import httpx
import pytest

from service.settings import Settings
from tests.browser.browser import (
    BUNDLES,
    DESKTOP,
    PHONE,
    choose,
    drop,
    go,
    opened,
    wait_for,
)
from tests.support.processes import free_port, serving
from tests.support.servers import ROOT, running, wait

pytestmark = pytest.mark.browser

WORD = json.dumps(
    {
        "frames": json.loads((ROOT / "examples/word.json").read_text())["sequences"][0],
        "labels": list("ommandinx"),
    }
)
SIZES = pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
# Console errors while the service is down.
UNREACHABLE = ("ERR_CONNECTION", "WebSocket", "503")


class TestModels:
    def test_cards(self, page):
        """Every model has a card with plots, figures and digest."""
        go(page, "models")
        page.locator(".card").nth(3).wait_for()
        cards = page.locator(".card").all_inner_texts()
        models = httpx.get(page.url.partition("#")[0] + "models").json()["models"]
        for card, model in zip(cards, models, strict=True):
            assert card.startswith(model["name"])
            assert model["digest"] in card
            assert model["engine"] in card
        for plot in page.locator(".card img").all():
            plot.scroll_into_view_if_needed()
            plot.evaluate("(image) => image.decode()")

    def test_live(self, page, service):
        """The charts follow the metrics."""
        go(page, "models")
        page.locator("#live-requests canvas").wait_for()
        body = (ROOT / "examples/digit.json").read_bytes()
        for _ in range(50):
            httpx.post(service.url + "/classify", content=body)
        legend = page.locator("#live-rows .u-legend")
        legend.wait_for()
        page.wait_for_function(
            "() => Math.max(...document.getElementById('live-requests').plot.data[1]) > 5"
        )


class TestService:
    def test_recovers(self, browser, tmp_path):
        """If the service dies while it reads a digit and comes back, the digit is read
        again."""
        flags, port = ["--bundles", BUNDLES], free_port()
        motion = {"reduced_motion": "no-preference", "complains": UNREACHABLE}
        with serving(tmp_path, *flags, port=port) as service:
            wait(lambda: service.answers("/readyz"), "it is ready")
            with opened(browser, service.url, **motion) as page:
                wait_for(page, "digit", "Draw one")
                page.locator("#digit-samples button").nth(14).click()
                page.wait_for_function(
                    "() => parseInt(document.getElementById('digit-row').textContent) > 3"
                )
                service.process.kill()
                page.locator("#digit-error", has_text="cannot be reached").wait_for()
                page.locator("#status", has_text="not reachable").wait_for()
                service.process.wait()
                with serving(tmp_path, *flags, port=port):
                    wait_for(page, "digit", "7 (")
                    assert page.locator("#digit-error").is_hidden()
                    assert "is ready" in page.locator("#status").inner_text()

    def test_key(self, browser):
        """A service with API keys asks for one, then everything works, streams too."""
        key = "k" * 32
        settings = Settings(
            port=0, bundles=BUNDLES, api_keys=hashlib.sha256(key.encode()).hexdigest()
        )
        with (
            running(settings) as service,
            opened(browser, service.url, complains=["401"]) as page,
        ):
            page.locator("#key").fill(key)
            page.get_by_role("button", name="Use key").click()
            page.locator("#digit-samples button").nth(14).click()
            wait_for(page, "digit", "7 (")
            go(page, "models")
            page.locator(".card img").nth(3).wait_for()

    def test_no_web_socket(self, browser, service):
        """If a proxy blocks WebSockets, each row is a request."""
        broken = (
            "window.WebSocket = class {"
            " constructor() { setTimeout(() => this.onclose()); } }"
        )
        with opened(browser, "about:blank") as page:
            page.add_init_script(broken)
            page.goto(service.url)
            page.locator("#digit-samples button").nth(14).click()
            wait_for(page, "digit", "7 (")

    def test_starts_late(self, browser, tmp_path):
        """If the models are still loading, the page waits for them."""
        with (
            serving(tmp_path, "--bundles", BUNDLES) as service,
            opened(browser, service.url, complains=["503"]) as page,
        ):
            page.locator("#digit-samples button").nth(14).click()
            wait_for(page, "digit", "7 (")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@SIZES
def test_accessibility(browser, service, scheme, size):
    """Axe finds no serious violation in any panel, and no panel is wider than the page."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    options = {"color_scheme": scheme, "viewport": size, "bypass_csp": True}
    with opened(browser, service.url, **options) as page:
        page.locator("#digit-samples button").nth(14).click()
        wait_for(page, "digit", "7 (")
        for panel in ("digit", "word", "sequence", "models"):
            go(page, panel)
            if panel == "word":
                page.locator("#word-samples button").first.click()
                wait_for(page, panel, "reads")
            if panel == "sequence":
                choose(page, "letters")
                drop(page, "words.jsonl", f"{WORD}\n{WORD}")
                page.locator("#answers-said", has_text="agree").wait_for()
            if panel == "models":
                page.locator(".card").first.wait_for()
            for details in page.locator(f"#{panel} summary").all():
                details.click()
            violations = axe.run(page).response["violations"]
            serious = [v for v in violations if v["impact"] in ("serious", "critical")]
            assert not serious, [(v["id"], v["nodes"][0]["html"]) for v in serious]
            width = page.evaluate("() => document.documentElement.scrollWidth")
            assert width <= size["width"]


def test_tabs_by_keyboard(page):
    """Arrow keys select a tab; the address of a panel opens it."""
    page.locator("#tab-digit").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#word").is_visible()
    assert page.url.endswith("#word")
    page.reload()
    assert page.locator("#word").is_visible()


def boxes(page, selector: str) -> list[dict]:
    """The places of all elements of a selector, in pixels."""
    return [element.bounding_box() for element in page.locator(selector).all()]


@SIZES
@pytest.mark.parametrize("panel", ["digit", "text"])
def test_bars(browser, service, size, panel):
    """The bars of all classes begin at one place and have one full length, whatever the
    lengths of the names, and each class takes one line."""
    with opened(browser, service.url, viewport=size) as page:
        go(page, panel)
        if panel == "digit":
            page.locator("#digit-samples button").nth(14).click()
        else:
            page.locator("#text-field").fill("set the bedroom lamp to 40 percent")
        wait_for(page, panel, {"digit": "7 (", "text": "of 34"}[panel])
        tracks = boxes(page, f"#{panel}-bars .track")
        assert len(tracks) == {"digit": 10, "text": 8}[panel]
        assert len({(box["x"], box["width"]) for box in tracks}) == 1
        heights = {box["height"] for box in boxes(page, f"#{panel}-bars li")}
        assert max(heights) < 1.5 * min(heights)


@SIZES
def test_percentages(browser, service, size):
    """100.0 % takes one line, as every other percentage."""
    with opened(browser, service.url, viewport=size) as page:
        page.locator("#digit-bars li").nth(9).wait_for()
        page.evaluate(
            "() => import('/playground/bars.js').then(({ bars }) => bars("
            " document.getElementById('digit-bars'), [...'0123456789'],"
            " [0, 0, 0, 0, 0, 0, 0, 1, 0, 0]))"
        )
        page.locator("#digit-bars .best", has_text="100.0 %").wait_for()
        assert len({box["height"] for box in boxes(page, "#digit-bars .share")}) == 1


def test_header(page):
    """The header names no panel."""
    text = page.locator("header").inner_text()
    assert "one step at a time" in text
    assert "digit" not in text


def test_plots_in_the_dark(browser, service):
    """The plots of the reports, black on white, are turned to white on black."""
    pixel = (
        "async (image) => { await image.decode();"
        " const pen = document.createElement('canvas').getContext('2d');"
        " pen.filter = getComputedStyle(image).filter; pen.drawImage(image, 0, 0);"
        " return [...pen.getImageData(2, 2, 1, 1).data].slice(0, 3); }"
    )
    for scheme, dark in (("light", False), ("dark", True)):
        with opened(browser, service.url, color_scheme=scheme) as page:
            go(page, "models")
            plot = page.locator(".card img").first
            plot.scroll_into_view_if_needed()
            assert (max(plot.evaluate(pixel)) < 100) == dark
