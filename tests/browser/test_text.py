"""The panel Text, typed in, in a browser."""

import hashlib

import pytest

from service.settings import Settings
from tests.browser.browser import BUNDLES, opened, wait_for
from tests.support.servers import running

pytestmark = pytest.mark.browser

COMMAND = "turn on the kitchen light"


@pytest.fixture
def panel(page):
    page.locator("#tab-text").click()
    return page


def letters(page) -> str:
    return page.locator("#text-letters").text_content()


def typed(page, text: str) -> None:
    page.locator("#text-field").press_sequentially(text)
    page.wait_for_function(
        "text => document.getElementById('text-letters').textContent === text",
        arg=page.locator("#text-field").input_value(),
    )


def test_typing(panel):
    """The class follows each letter, and words get labels."""
    typed(panel, COMMAND)
    wait_for(panel, "text", "TurnOn (")
    assert "decided at letter" in panel.locator("#text-said").inner_text()
    assert panel.locator("#text-letters .turn").count() == 1
    words = panel.locator("#text-words > li")
    words.nth(4).wait_for()
    labels = [text.split()[:2] for text in words.all_inner_texts()]
    assert ["the", "DET"] in labels
    assert ["kitchen", "NOUN"] in labels


def test_deleting(panel):
    """After a deletion the answer is that of the text that is left."""
    typed(panel, "turn of")
    before = panel.locator("#text-said").inner_text()
    typed(panel, "f the light")
    for _ in range(len("f the light")):
        panel.keyboard.press("Backspace")
    panel.wait_for_function(
        "text => document.getElementById('text-said').textContent === text", arg=before
    )
    assert letters(panel) == "turn of"
    panel.locator("#text-field").fill("")
    wait_for(panel, "text", "Type a command")
    assert panel.locator("#text-words > li").count() == 0


def test_examples_and_choices(panel):
    """An example is read at once; a focused word shows its next labels."""
    panel.locator("#text-examples button").first.click()
    wait_for(panel, "text", "TurnOn (")
    word = panel.locator("#text-words > li").first
    word.wait_for()
    assert not word.locator(".choices").is_visible()
    word.focus()
    assert word.locator(".choices").is_visible()
    assert word.locator(".choices > span").count() == 3


def test_strange_text(panel):
    """Characters outside of the vocabulary, and of two code units, are letters too."""
    typed(panel, "naïve 🐕 猫")
    wait_for(panel, "text", "of 9")
    panel.locator("#text-words > li.new").nth(1).wait_for()
    assert panel.locator("#text-classify-error").is_hidden()


def test_key(browser, text_service):
    """With an API key each letter is a request of its own."""
    with opened(browser, text_service, complains=("401",)) as page:
        page.evaluate("sessionStorage.setItem('unrolled-key', 'secret')")
        page.reload()
        page.locator("#tab-text").click()
        typed(page, "pause the music")
        wait_for(page, "text", "MediaPause (")


@pytest.fixture
def text_service():
    digest = hashlib.sha256(b"secret").hexdigest()
    with running(Settings(port=0, bundles=BUNDLES, api_keys=digest)) as service:
        yield service.url
