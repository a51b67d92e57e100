"""The panel that reads sequences from text and files, in a browser."""

import json

import pytest

from service.settings import Settings
from tests.browser.browser import choose, drop, go, opened, wait_for
from tests.support.servers import ROOT, running

pytestmark = pytest.mark.browser
VOWEL = json.loads((ROOT / "examples/vowel.json").read_text())["sequences"][0]


class TestSequence:
    def test_dropped_csv(self, page):
        """The header of a CSV file may have another order, and further columns."""
        choose(page, "vowels")
        names = [f"cepstrum {n}" for n in range(12, 0, -1)]
        lines = [",".join(["step", *names])]
        for step, frame in enumerate(VOWEL):
            lines.append(",".join(map(str, [step, *reversed(frame)])))
        drop(page, "vowel.csv", "\n".join(lines))
        wait_for(page, "sequence", "vowels: 3")
        assert page.locator("#sequence-features canvas").count() == 12
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
        choose(page, "vowels")
        page.locator("#sequence-text").fill(text)
        page.locator("#sequence-read").click()
        wait_for(page, "sequence", "vowels: 3")

    def test_label(self, page):
        """A labelling model gives a ribbon of the classes."""
        choose(page, "letters")
        drop(page, "word.json", (ROOT / "examples/word.json").read_text())
        wait_for(page, "sequence", "“ommanding”")
        runs = page.locator(".ribbon .run").all_inner_texts()
        assert runs == ["o", "m", "a", "n", "d", "i", "n", "g"]  # mm is one run

    @pytest.mark.parametrize("model", ["digits", "letters-live", "letters", "vowels"])
    def test_sample(self, page, model):
        choose(page, model)
        page.locator("#sequence-sample").click()
        wait_for(page, "sequence", f"{model}: ")

    def test_several(self, page):
        """A column that groups the rows makes sequences of them, to go through."""
        choose(page, "vowels")
        lines = [",".join(["sequence", *(f"cepstrum {n}" for n in range(1, 13))])]
        for name, steps in (("a", 20), ("b", 7)):
            lines += [",".join(map(str, [name, *frame])) for frame in VOWEL[:steps]]
        drop(page, "two.csv", "\n".join(lines))
        page.get_by_text("a: 1 of 2").wait_for()
        page.locator("#sequence-after").click()
        page.get_by_text("b: 2 of 2").wait_for()
        assert page.locator("#sequence-after").is_disabled()

    def test_another_model(self, page):
        """A file that does not fit the model says why, and offers those that it fits."""
        go(page, "sequence")
        names = [f"cepstrum {n}" for n in range(1, 13)]
        lines = [
            ",".join(["label", *names]),
            *(",".join(map(str, ['"a, b"', *frame])) for frame in VOWEL),
        ]
        choose(page, "digits")
        drop(page, "vowel.csv", "\n".join(lines))
        error = page.locator("#sequence-error")
        error.get_by_text("28 features of digits are missing").wait_for()
        file = page.locator("#sequence-file").evaluate("(input) => input.files[0].name")
        assert file == page.locator("#sequence-source").inner_text() == "vowel.csv"
        error.get_by_role("button", name="Use vowels").click()
        wait_for(page, "sequence", "vowels: 3")
        assert error.is_hidden()
        assert page.locator("#sequence-model").input_value() == "vowels"
        source = page.locator("#sequence-source").inner_text()
        assert source == "vowel.csv: 1 sequence, 19 steps."

    def test_texts(self, page):
        """A table of texts does not fit a model of numbers; those that read text are offered,
        and answer all of them."""
        choose(page, "digits")
        rows = [
            "ticket,body",
            "1,turn on the light",
            '2,"set a timer, please"',
            "3,pause the music",
        ]
        drop(page, "mails.csv", "\n".join(rows))
        error = page.locator("#sequence-error")
        error.get_by_role("button", name="Use tags").wait_for()
        assert "No other model" not in error.inner_text()
        error.get_by_role("button", name="Use intents").click()
        wait_for(page, "sequence", "intents: TurnOn (")
        page.get_by_text("3 sequences answered.").wait_for()
        answers = page.locator("#answers-table tbody tr").all_inner_texts()
        assert [a.split("\t")[1] for a in answers] == [
            "TurnOn",
            "StartTimer",
            "MediaPause",
        ]
        source = page.locator("#sequence-source").inner_text()
        assert source == (
            "mails.csv: 3 sequences, 51 letters. intents does not use the column “ticket”."
        )
        assert page.locator("#sequence-features").inner_text() == "turn on the light"
        choose(page, "tags")
        wait_for(page, "sequence", "tags: ")
        words = page.locator("#sequence-ribbon .word")
        assert words.nth(2).inner_text().split()[:2] == ["the", "DET"]
        page.locator("#sequence-sample").click()
        page.get_by_text("an example: 1 sequence").wait_for()

    def test_records(self, browser, text_bundles):
        """A table of events is offered to the models that read its columns."""
        with (
            running(Settings(port=0, bundles=text_bundles)) as service,
            opened(browser, service.url) as page,
        ):
            choose(page, "commands")
            table = (text_bundles / "visits.csv").read_text()
            drop(page, "visits.csv", table.replace("visit,", "sequence,", 1))
            error = page.locator("#sequence-error")
            error.get_by_role("button", name="Use calls").wait_for()
            error.get_by_role("button", name="Use visits").click()
            wait_for(page, "sequence", "visits: ")
            page.locator("#answers-said", has_text="of 120 sequences").wait_for()
            assert page.locator("#sequence-features tbody tr").count() > 1
            assert page.locator("#sequence-classes .u-legend tr").count() == 3
            choose(page, "calls")
            page.locator("#answers-said", has_text=" steps").wait_for()
            for model in ("visits", "names", "commands"):
                choose(page, model)
                page.locator("#sequence-sample").click()
                wait_for(page, "sequence", f"{model}: ")

    def test_invalid_input(self, page):
        """Text that holds no sequence is shown with the reason."""
        choose(page, "vowels")
        for text, message in (
            ("", "input is empty"),
            ("[[1, 2", "Invalid JSON"),
            ("1,2\n3", "Line 2 has 1 cells"),
            ("a,b\n1,2", "12 features of vowels are missing"),
            ("1," * 11 + "2\n" + "1," * 11 + "x", "Line 2: “x” is not a number"),
        ):
            page.locator("#sequence-text").fill(text)
            page.locator("#sequence-read").click()
            page.locator("#sequence-error", has_text=message).wait_for()

    def test_refused(self, browser, service):
        """A refused request is shown with the field and the reason, once for many fields."""
        with opened(browser, service.url, complains=["422"]) as page:
            choose(page, "vowels")
            page.locator("#sequence-text").fill("[[1, 2], [3, 4]]")
            page.locator("#sequence-read").click()
            error = page.locator("#sequence-error")
            error.get_by_text("2 features per step; vowels takes 12").wait_for()
            error.get_by_text("No other model in service has these features").wait_for()
            page.locator("#sequence-text").fill(json.dumps([[1e39] * 12] * 30))
            page.locator("#sequence-read").click()
            error.locator("li").first.wait_for()
            assert "sequence 1[0][0] to sequence 1[" in error.inner_text()
            assert error.locator("li").count() <= 2

    def test_any_bundle(self, browser, bundles):
        """This panel takes any model; the other panels say that no model fits."""
        with (
            running(Settings(port=0, bundles=bundles)) as service,
            opened(browser, service.url) as page,
        ):
            page.get_by_text("No model reads digits").wait_for()
            for model in ("walks", "tags", "both"):
                choose(page, model)
                page.locator("#sequence-text").fill("[[1, 2, 3], [3, 4, 5]]")
                page.locator("#sequence-read").click()
                wait_for(page, "sequence", f"{model}: ")
