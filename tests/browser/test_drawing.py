"""The panels that are drawn on, for digits and for words, in a browser."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from model.datasets import builtin
from tests.browser.browser import draw, go, opened, summary, wait_for
from tests.browser.strokes import HANDS, LETTERS, digits, letter
from tests.support.servers import ROOT

pytestmark = pytest.mark.browser

WORDS = ("house", "river", "garden", "window", "bright")
WORDS += ("planet", "school", "music", "friend", "yellow")


def known_words():
    """The distinct words of the letters' data."""
    with np.load(builtin.DATA / "letters.npz") as archive:
        return np.unique(archive["words"]).tolist()


class TestDigit:
    def test_drawn(self, page):
        """Of digits in five styles of handwriting, nine of ten are predicted correctly."""
        wrong = []
        for drawing in digits():
            page.locator("#digit-clear").click()
            draw(page, "#digit-pad", drawing.strokes)
            wait_for(page, "digit", " %)")
            if f"{drawing.label} (" not in summary(page, "digit"):
                wrong.append((drawing.hand, drawing.label, summary(page, "digit")))
        assert len(digits()) >= 30
        assert len(wrong) <= len(digits()) // 10, wrong

    def test_nothing_drawn(self, page):
        """Before the first stroke, and after Clear, no class is ahead."""
        bars = page.locator("#digit-bars li")
        bars.first.wait_for()
        page.locator("#digit-samples button").first.click()
        wait_for(page, "digit", "0 (")
        assert page.locator("#digit-bars .best").count() == 1
        page.locator("#digit-clear").click()
        for _ in range(2):
            assert page.locator("#digit-bars .best").count() == 0
            assert {text.split()[-1] for text in bars.all_inner_texts()} == {"–"}
            page.reload()
            bars.first.wait_for()

    def test_moves_with_each_row(self, browser, service):
        """The bars change with each row."""
        with opened(browser, service.url, reduced_motion="no-preference") as page:
            page.evaluate(
                "() => {"
                " const seen = (window.seen = []);"
                " const watch = () => seen.push(["
                "  document.getElementById('digit-row').textContent,"
                "  [...document.querySelectorAll('#digit-bars .share')].map((e) => e.textContent).join()"
                " ]);"
                " new MutationObserver(watch).observe("
                "  document.getElementById('digit-row'), { childList: true }); }"
            )
            page.locator("#digit-samples button").nth(14).click()
            wait_for(page, "digit", "7 (")
            seen = page.evaluate("() => window.seen")
            rows = [row for row, _ in seen]
            assert [f"{n} of 28" for n in range(1, 29)] == rows[-28:]
            assert len({shares for _, shares in seen}) > 10

    def test_steps_back(self, page):
        """The slider shows the probabilities after a row."""
        page.locator("#digit-samples button").nth(14).click()
        wait_for(page, "digit", "7 (")
        final = page.locator("#digit-bars .best").inner_text()
        page.locator("#digit-step").fill("2")
        assert page.locator("#digit-row").inner_text() == "2 of 28"
        assert page.locator("#digit-bars .best").inner_text() != final
        unread = page.locator("#digit-unread").evaluate("e => e.style.top")
        assert float(unread.strip("%")) == pytest.approx(100 * 2 / 28, abs=0.01)

    def test_shown_code_answers(self, page, service, tmp_path):
        """The curl command and the Python code get the displayed answer."""
        page.locator("#digit-samples button").nth(6).click()
        wait_for(page, "digit", "3 (")
        page.locator("#digit-code summary").click()
        with page.expect_download() as download:
            page.locator("#digit-code a").click()
        download.value.save_as(tmp_path / "request.json")
        curl, python, streamed = page.locator("#digit-code pre").all_inner_texts()
        options = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 60}
        output = subprocess.run(curl, shell=True, check=True, **options).stdout
        assert json.loads(output)["predictions"][0]["label"] == "3"
        for script in (python, streamed):
            command = [sys.executable, "-c", script]
            env = {"PYTHONPATH": str(ROOT), "PATH": ""}
            done = subprocess.run(command, check=True, env=env, **options)
            assert re.search(r"\b3\b", done.stdout.splitlines()[-1])


class TestRaster:
    """The pixels of drawn strokes."""

    def rows(self, page, strokes, kind="digit"):
        return np.array(
            page.evaluate(
                "([kind, strokes]) => import('/playground/drawing/raster.js')"
                ".then((raster) => raster[kind](strokes))",
                [kind, [stroke.tolist() for stroke in strokes]],
            )
        )

    def test_digit(self, page):
        """The ink is 20 pixels wide or high with its centre of mass in the middle, whatever
        the place and the size of the drawing."""
        places = np.arange(28) + 0.5
        for drawing in digits()[::7]:
            rows = self.rows(page, drawing.strokes)
            assert rows.shape == (28, 28)
            assert (rows.min(), rows.max()) == (0, 1)
            ink = rows > 0.5
            sides = [np.ptp(np.flatnonzero(ink.any(axis))) + 1 for axis in (0, 1)]
            assert 19 <= max(sides) <= 21
            mass = [(rows.sum(axis) * places).sum() / rows.sum() for axis in (0, 1)]
            assert mass == pytest.approx([14, 14], abs=0.3)
            smaller = [0.3 * stroke + 0.6 for stroke in drawing.strokes]
            np.testing.assert_allclose(self.rows(page, smaller), rows, atol=1e-6)

    def test_letter(self, page):
        """A letter is scaled to fit 16 x 8 pixels, in the middle."""
        for name in "olmi":
            pixels = self.rows(page, letter(name).strokes, "letter").reshape(16, 8)
            assert set(np.unique(pixels)) == {0, 1}
            wide, high = (np.flatnonzero(pixels.any(axis)) for axis in (0, 1))
            assert np.ptp(wide) == 7 or np.ptp(high) == 15
            assert abs(wide.min() - (7 - wide.max())) <= 1
            assert abs(high.min() - (15 - high.max())) <= 1

    def test_dot(self, page):
        """A click without movement draws a dot."""
        for kind in ("digit", "letter"):
            rows = self.rows(page, [np.array([[0.3, 0.4]])], kind)
            assert np.isfinite(rows).all()
            assert rows.sum() >= 1


class TestWord:
    def test_alphabet(self, page):
        """Of the letters drawn alone, four at most are read wrongly."""
        go(page, "word")
        wrong = []
        for name in LETTERS:
            wait_for(page, "word", "Draw the first letter")
            draw(page, "#word-pad", letter(name).strokes)
            for _ in range(30):  # each stroke of a letter gets an answer
                if f"letters reads “{name}”" in summary(page, "word"):
                    break
                page.wait_for_timeout(100)
            else:
                wrong.append(f"{name}: {summary(page, 'word')}")
            page.locator("#word-back").click()
        assert len(wrong) <= 4, wrong

    def test_any_word(self, page, service):
        """Of words that the networks have never seen, drawn in five hands, nine letters of
        ten are read."""
        assert not {word[i:] for word in WORDS for i in (0, 1)} & set(known_words())
        sequences = [
            page.evaluate(
                "(letters) => import('/playground/drawing/raster.js')"
                ".then((raster) => letters.map(raster.letter))",
                [
                    [stroke.tolist() for stroke in letter(name, hand).strokes]
                    for name in word
                ],
            )
            for word in WORDS
            for hand in HANDS
        ]
        words = [word for word in WORDS for _ in HANDS]
        for model in ("letters", "letters-live"):
            body = {"model": model, "sequences": sequences}
            answers = service.http.post("/label", json=body).json()["predictions"]
            right = [
                label == name
                for answer, word in zip(answers, words, strict=True)
                for label, name in zip(answer["labels"], word, strict=True)
            ]
            assert np.mean(right) >= 0.9, model

    @pytest.mark.parametrize("name", ["omplex", "river"])
    def test_drawn(self, page, name):
        """Both networks predict letters that are drawn one after the other."""
        go(page, "word")
        for character in name:
            draw(page, "#word-pad", letter(character).strokes)
            page.locator("#word-next").click()
        wait_for(page, "word", f"letters reads “{name}”")
        assert f"letters-live reads “{name}”" in summary(page, "word")
        table = page.locator("#word-table")
        assert table.locator("tbody tr").count() == 2
        for row in table.locator("tbody tr").all():
            assert "".join(row.locator("strong").all_inner_texts()) == name
            assert row.locator("td small.quiet").count() == len(name)  # runners-up

    def test_context(self, page):
        """Letters on which the networks differ are marked."""
        go(page, "word")
        draw(page, "#word-pad", letter("v").strokes)
        wait_for(page, "word", "reads")
        for button in page.locator("#word-samples button").all():
            button.click()
            wait_for(page, "word", f"letters reads “{button.inner_text()}”")
            live, both = re.findall("“(.*?)”", summary(page, "word"))
            differing = sum(a != b for a, b in zip(live, both, strict=True))
            assert page.locator("#word-table .context").count() == 2 * differing

    def test_sample_again(self, page):
        """Undo changes no sample."""
        go(page, "word")
        sample = page.locator("#word-samples button").first
        for _ in range(2):
            sample.click()
            wait_for(page, "word", f"letters reads “{sample.inner_text()}”")
            page.locator("#word-back").click()
            page.locator("#word-back").click()

    def test_keys(self, page):
        """Enter adds the letter, Backspace removes it."""
        go(page, "word")
        draw(page, "#word-pad", letter("o").strokes)
        page.keyboard.press("Enter")
        draw(page, "#word-pad", letter("m").strokes)
        page.locator("#word-table canvas").nth(1).wait_for()
        page.keyboard.press("Backspace")
        page.locator("#word-table canvas").nth(1).wait_for(state="detached")
        assert page.locator("#word-table canvas").count() == 1
