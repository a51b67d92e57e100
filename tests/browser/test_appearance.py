"""How the page looks: bars that can be compared, plots in the dark, and names of any kind."""

import pytest

from tests.browser.browser import DESKTOP, PHONE, go, opened, wait_for

pytestmark = pytest.mark.browser
SIZES = pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])


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
    """What the header says holds for every panel."""
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
