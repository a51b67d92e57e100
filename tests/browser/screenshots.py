"""Take the screenshots of docs/playground, with the shipped bundles.

    make screenshots

Each panel, light and dark, on a desktop and on a phone.
"""

import io
import itertools
from pathlib import Path

import httpx
from PIL import Image

from service.settings import Settings
from tests.browser.browser import BUNDLES, DESKTOP, PHONE, chromium, draw, opened
from tests.browser.inputs import vowels_csv
from tests.browser.strokes import digits
from tests.support.servers import ROOT, running

FOLDER = ROOT / "docs" / "playground"
COLOURS = 192  # a palette makes the files half as large


def digit(page) -> None:
    drawing = next(d for d in digits() if (d.hand, d.label) == ("broad", "4"))
    draw(page, "#digit-pad", drawing.strokes)
    page.locator("#digit-said", has_text=" %)").wait_for()


def word(page) -> None:
    page.get_by_role("button", name="ylophone").click()
    page.locator("#word-table .context").first.wait_for()


def text(page) -> None:
    page.locator("#text-field").fill("set the bedroom lamp to 40 percent")
    page.locator("#text-said", has_text="of 34").wait_for()
    page.locator("#text-words > li").nth(6).wait_for()


def sequence(page) -> None:
    page.locator("#sequence-model").select_option("vowels")
    file = {"name": "utterances.csv", "mimeType": "text/csv"}
    file["buffer"] = vowels_csv(370).encode()
    page.locator("#sequence-file").set_input_files(file)
    page.locator("#answers-said", has_text="agree").wait_for()
    page.locator("#answers-next-wrong").click()
    page.locator("#sequence-said", has_text="✗").wait_for()


def models(page) -> None:
    page.locator(".card img").nth(3).wait_for()
    url = page.url.partition("#")[0] + "classify"
    body = (ROOT / "examples" / "digit.json").read_bytes()
    with httpx.Client() as client:  # traffic for the charts
        for at in range(8):
            for _ in range(40 + 30 * (at % 3)):
                client.post(url, content=body)
            page.wait_for_timeout(1500)


PANELS = {
    "digit": digit,
    "word": word,
    "text": text,
    "sequence": sequence,
    "models": models,
}


def shoot(browser, url: str, name: str, scheme: str, size: dict, file: Path) -> None:
    options = {"color_scheme": scheme, "viewport": size, "device_scale_factor": 1}
    with opened(browser, f"{url}/#{name}", **options) as page:
        page.locator("#status[data-state=ready]").wait_for()
        page.locator("#digit-samples button").first.wait_for(state="attached")
        PANELS[name](page)
        page.mouse.move(0, 0)
        page.evaluate("() => scrollTo(0, 0)")
        page.wait_for_timeout(300)
        whole = name in ("digit", "word", "text") or (
            size is PHONE and name == "sequence"
        )
        picture = Image.open(io.BytesIO(page.screenshot(full_page=whole)))
        file.parent.mkdir(exist_ok=True)
        picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(file)
        print(file.relative_to(ROOT), file.stat().st_size, flush=True)


def main() -> None:
    settings = Settings(port=0, bundles=BUNDLES)
    sizes = {"desktop": DESKTOP, "phone": PHONE}
    with running(settings) as server, chromium() as browser:
        for name, scheme, size in itertools.product(PANELS, ("light", "dark"), sizes):
            file = FOLDER / f"{name}-{scheme}-{size}.png"
            shoot(browser, server.url, name, scheme, sizes[size], file)


if __name__ == "__main__":
    main()
