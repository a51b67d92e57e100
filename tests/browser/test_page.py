"""The playground in a browser, on a real server."""

import hashlib
import json
import re
import subprocess
import sys

import httpx
import numpy as np
import pytest

from service.settings import Settings
from tests.support.browser import DESKTOP, PHONE, chromium, draw, opened
from tests.support.processes import free_port, serving
from tests.support.servers import ROOT, running, wait
from tests.support.strokes import digits, letter

BUNDLES = ROOT / "bundles"
pytestmark = pytest.mark.browser

# Console errors while the service is down.
UNREACHABLE = ("ERR_CONNECTION", "WebSocket", "503")


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def service():
    with running(Settings(port=0, bundles=BUNDLES)) as service:
        yield service


@pytest.fixture
def page(browser, service):
    with opened(browser, service.url) as page:
        yield page


def summary(page, panel):
    """The text of a panel's prediction."""
    return page.locator(f"#{panel}-said").inner_text()


def wait_for(page, panel, text):
    """Wait until a panel's prediction contains a text."""
    page.locator(f"#{panel}-said", has_text=text).wait_for()


def go(page, panel):
    """Open a panel."""
    page.locator(f"#tab-{panel}").click()


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
                "([kind, strokes]) => import('/playground/raster.js')"
                ".then((raster) => raster[kind](strokes))",
                [kind, [stroke.tolist() for stroke in strokes]],
            )
        )

    @pytest.mark.parametrize("place", range(0, 50, 7))
    def test_digit(self, page, place):
        """The ink is 20 pixels wide or high with its centre of mass in the middle, whatever
        the place and the size of the drawing."""
        rows = self.rows(page, digits()[place].strokes)
        assert rows.shape == (28, 28)
        assert rows.min() == 0
        assert rows.max() == 1
        ink = rows > 0.5
        sides = [np.ptp(np.flatnonzero(ink.any(axis))) + 1 for axis in (0, 1)]
        assert 19 <= max(sides) <= 21
        places = np.arange(28) + 0.5
        mass = [(rows.sum(axis) * places).sum() / rows.sum() for axis in (0, 1)]
        assert mass == pytest.approx([14, 14], abs=0.3)
        smaller = [0.3 * stroke + 0.6 for stroke in digits()[place].strokes]
        np.testing.assert_allclose(self.rows(page, smaller), rows, atol=1e-6)

    @pytest.mark.parametrize("name", ["o", "l", "m", "i"])
    def test_letter(self, page, name):
        """A letter is scaled to fit 16 x 8 pixels, in the middle."""
        pixels = self.rows(page, letter(name).strokes, "letter").reshape(16, 8)
        assert set(np.unique(pixels)) == {0, 1}
        wide, high = (np.flatnonzero(pixels.any(axis)) for axis in (0, 1))
        assert np.ptp(wide) == 7 or np.ptp(high) == 15
        assert abs(wide.min() - (7 - wide.max())) <= 1
        assert abs(high.min() - (15 - high.max())) <= 1

    @pytest.mark.parametrize("kind", ["digit", "letter"])
    def test_dot(self, page, kind):
        """A click without movement draws a dot."""
        rows = self.rows(page, [np.array([[0.3, 0.4]])], kind)
        assert np.isfinite(rows).all()
        assert rows.sum() >= 1


class TestWord:
    @pytest.mark.parametrize("name", ["omplex", "ump"])
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
            self.predict_with_two(page)

    def predict_with_two(self, page):
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

    @pytest.mark.parametrize(
        ("text", "features", "frames"),
        [
            ("[1, 2, 3]", ["a", "b", "c"], [[1, 2, 3]]),
            ("[1, 2, 3]", ["a"], [[1], [2], [3]]),
            ("0,1\n5,6", ["0", "1"], [[5, 6]]),
            ("1,0\n5,6", ["0", "1"], [[6, 5]]),
            ('"a, b",c\n5,6', ["c", "a, b"], [[6, 5]]),
            ("\ufeff1;2\r\n3;4\r\n", ["a", "b"], [[1, 2], [3, 4]]),
            ("step,a\n1,7\n2,8", ["x"], [[7], [8]]),
        ],
    )
    def test_read(self, page, text, features, frames):
        read = page.evaluate(
            "([text, features]) => import('/playground/table.js')"
            ".then((table) => table.sequences(text, features))",
            [text, features],
        )
        assert [sequence["frames"] for sequence in read] == [frames]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "input is empty"),
            ("[[1, 2", "Invalid JSON"),
            ("1,2\n3", "Line 2 has 1 cells"),
            ("1,2\n3,x", "Line 2: “x” is not a number"),
        ],
    )
    def test_invalid_input(self, page, text, message):
        self.choose(page, "vowels")
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
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
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
                page.locator("#sequence-sample").click()
                wait_for(page, panel, ": ")
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
