"""The panel that reads sequences from text and files, in a browser."""

import json

import pytest

from service.settings import Settings
from tests.browser.browser import go, opened, wait_for
from tests.support.servers import ROOT, running

pytestmark = pytest.mark.browser
VOWEL = json.loads((ROOT / "examples/vowel.json").read_text())["sequences"][0]


class TestSequence:
    def choose(self, page, model):
        go(page, "sequence")
        page.locator("#sequence-model").select_option(model)

    def drop(self, page, name, text):
        """Drop a file on the panel."""
        page.locator("#sequence").evaluate(
            "(zone, [name, text]) => {"
            " const data = new DataTransfer(); data.items.add(new File([text], name));"
            " zone.dispatchEvent(new DragEvent('drop',"
            "  { dataTransfer: data, bubbles: true, cancelable: true })); }",
            [name, text],
        )

    def test_dropped_csv(self, page):
        """The header of a CSV file may have another order, and further columns."""
        self.choose(page, "vowels")
        names = [f"cepstrum {n}" for n in range(12, 0, -1)]
        lines = [",".join(["step", *names])]
        for step, frame in enumerate(VOWEL):
            lines.append(",".join(map(str, [step, *reversed(frame)])))
        self.drop(page, "vowel.csv", "\n".join(lines))
        wait_for(page, "sequence", "vowels: 3")
        assert page.locator("#sequence-features canvas").count() == 1
        assert page.locator("#sequence-classes .u-legend tr").count() > 5

    @pytest.mark.parametrize(
        "text",
        [
            json.dumps(VOWEL),
            json.dumps({"frames": VOWEL}),
            json.dumps({"sequences": [VOWEL, VOWEL[:5]]}),
            "\n".join(json.dumps(frame) for frame in VOWEL),
            "\n".join(json.dumps({"frames": VOWEL[:n]}) for n in (20, 5)),
            "\n".join("; ".join(map(str, frame)) for frame in VOWEL),
        ],
        ids=["frames", "object", "request", "steps", "lines", "csv"],
    )
    def test_pasted(self, page, text):
        self.choose(page, "vowels")
        page.locator("#sequence-text").fill(text)
        page.locator("#sequence-read").click()
        wait_for(page, "sequence", "vowels: 3")

    def test_label(self, page):
        """A labelling model gives a ribbon of the classes."""
        self.choose(page, "letters")
        self.drop(page, "word.json", (ROOT / "examples/word.json").read_text())
        wait_for(page, "sequence", "“ommanding”")
        runs = page.locator(".ribbon .run").all_inner_texts()
        assert runs == ["o", "m", "a", "n", "d", "i", "n", "g"]  # mm is one run

    @pytest.mark.parametrize("model", ["digits", "letters-live", "letters", "vowels"])
    def test_sample(self, page, model):
        self.choose(page, model)
        page.locator("#sequence-sample").click()
        wait_for(page, "sequence", f"{model}: ")

    def test_several(self, page):
        """A column that groups the rows makes sequences of them, to go through."""
        self.choose(page, "vowels")
        lines = [",".join(["sequence", *(f"cepstrum {n}" for n in range(1, 13))])]
        for name, steps in (("a", 20), ("b", 7)):
            lines += [",".join(map(str, [name, *frame])) for frame in VOWEL[:steps]]
        self.drop(page, "two.csv", "\n".join(lines))
        page.get_by_text("a: 1 of 2").wait_for()
        page.locator("#sequence-after").click()
        page.get_by_text("b: 2 of 2").wait_for()
        assert page.locator("#sequence-after").is_disabled()

    def test_another_model(self, browser, service):
        """The input is used again for another model, with its columns by name."""
        with opened(browser, service.url, complains=["422"]) as page:
            go(page, "sequence")
            names = [f"cepstrum {n}" for n in range(1, 13)]
            lines = [
                ",".join(["label", *names]),
                *(",".join(map(str, ['"a, b"', *f])) for f in VOWEL),
            ]
            page.locator("#sequence-text").fill("\n".join(lines))
            self.choose(page, "digits")
            page.locator("#sequence-read").click()
            page.locator("#sequence-error", has_text="has 12 features").first.wait_for()
            self.choose(page, "vowels")
            wait_for(page, "sequence", "vowels: 3")
            assert page.locator("#sequence-error").is_hidden()

    def test_read(self, page):
        """JSON and CSV, with or without a header, give frames in the model's order."""
        for text, features, frames in (
            ("[1, 2, 3]", ["a", "b", "c"], [[1, 2, 3]]),
            ("[1, 2, 3]", ["a"], [[1], [2], [3]]),
            ("0,1\n5,6", ["0", "1"], [[5, 6]]),
            ("1,0\n5,6", ["0", "1"], [[6, 5]]),
            ('"a, b",c\n5,6', ["c", "a, b"], [[6, 5]]),
            ("\ufeff1;2\r\n3;4\r\n", ["a", "b"], [[1, 2], [3, 4]]),
            ("step,a\n1,7\n2,8", ["x"], [[7], [8]]),
        ):
            read = page.evaluate(
                "([text, features]) => import('/playground/table.js')"
                ".then((table) => table.sequences(text, features))",
                [text, features],
            )
            assert [sequence["frames"] for sequence in read] == [frames]

    def test_invalid_input(self, page):
        """Text that holds no sequence is shown with the reason."""
        self.choose(page, "vowels")
        for text, message in (
            ("", "input is empty"),
            ("[[1, 2", "Invalid JSON"),
            ("1,2\n3", "Line 2 has 1 cells"),
            ("1,2\n3,x", "Line 2: “x” is not a number"),
        ):
            page.locator("#sequence-text").fill(text)
            page.locator("#sequence-read").click()
            page.locator("#sequence-error", has_text=message).wait_for()

    def test_refused(self, browser, service):
        """A refused request is shown with the field and the reason."""
        with opened(browser, service.url, complains=["422"]) as page:
            self.choose(page, "vowels")
            page.locator("#sequence-text").fill("[[1, 2], [3, 4]]")
            page.locator("#sequence-read").click()
            error = page.locator("#sequence-error")
            error.get_by_text("has 2 features, the model takes 12").first.wait_for()
            assert "The request does not fit the model" in error.inner_text()

    def test_any_bundle(self, browser, bundles):
        """This panel takes any model; the other panels say that no model fits."""
        with (
            running(Settings(port=0, bundles=bundles)) as service,
            opened(browser, service.url) as page,
        ):
            page.get_by_text("No model reads digits").wait_for()
            for model in ("walks", "tags", "both"):
                self.choose(page, model)
                page.locator("#sequence-text").fill("[[1, 2, 3], [3, 4, 5]]")
                page.locator("#sequence-read").click()
                wait_for(page, "sequence", f"{model}: ")
