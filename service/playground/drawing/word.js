// The panel Word: labels drawn letters with a forward network, which knows the letters so
// far, and with a bidirectional one, which knows the whole word.

import { ask, health } from "../api.js";
import { code } from "../code.js";
import { fill, find, make, percent } from "../dom.js";
import { Pad, picture } from "./pad.js";
import { letter } from "./raster.js";
import { refusal } from "../refusal.js";

const PIXELS = 128;
const WIDE = 8;
const MOST = 14; // letters of the longest word in the training data

/** Returns true for a model that labels letters. */
export const fits = (model) => model.input === "frames" && model.task === "label" && model.feature_count === PIXELS;

export function start(models, samples) {
  // Forward networks first.
  const ordered = models.toSorted((a, b) => a.bidirectional - b.bidirectional);
  let letters = [];
  let run = 0;
  let failed = false;

  const pad = new Pad(find("word-pad"), changed);

  find("word-next").onclick = addLetter;
  find("word-back").onclick = () => {
    if (pad.empty) letters = letters.slice(0, -1);
    pad.clear();
    changed();
  };
  find("word-clear").onclick = () => setLetters([]);
  find("word").addEventListener("keydown", (event) => {
    if (event.target.closest("button, summary, pre, a, input")) return;
    if (event.key === "Enter") find("word-next").click();
    if (event.key === "Backspace") find("word-back").click();
  });
  health.addEventListener("ready", () => failed && changed());
  fill(find("word-samples"), samples.map(sample));
  setLetters([]);

  /** All letters, the one being drawn included. */
  function all() {
    return pad.empty ? letters : [...letters, letter(pad.strokes)];
  }

  function addLetter() {
    if (!pad.empty) letters = all();
    pad.clear();
    find("word-pad").focus();
    changed();
  }

  function setLetters(list) {
    letters = list;
    pad.clear();
    changed();
  }

  async function changed() {
    const thisRun = ++run;
    const drawn = all();
    find("word-next").disabled = pad.empty || drawn.length >= MOST;
    find("word-back").disabled = find("word-clear").disabled = drawn.length === 0;
    failed = false;
    refusal(find("word-error"));
    if (!drawn.length) {
      fill(find("word-table"));
      fill(find("word-code"));
      find("word-said").textContent = "Draw the first letter.";
      return;
    }
    const body = { sequences: [drawn], top_k: 2 };
    try {
      const answers = await Promise.all(
        ordered.map(({ name }) => ask("label", { model: name, ...body })),
      );
      if (thisRun !== run) return; // a letter was added meanwhile
      table(drawn, answers.map(({ predictions }) => predictions[0]));
      const last = ordered.at(-1).name;
      code(find("word-code"), "label", { model: last, sequences: [drawn] });
    } catch (error) {
      if (thisRun !== run) return;
      failed = true;
      refusal(find("word-error"), error, changed);
    }
  }

  function table(drawn, predictions) {
    const heads = drawn.map((pixels, at) => {
      const canvas = make("canvas", { role: "img", "aria-label": `Letter ${at + 1}` });
      picture(canvas, rows(pixels));
      return make("th", { scope: "col" }, canvas);
    });
    const lines = predictions.map(({ top }, at) => {
      const { name, bidirectional } = ordered[at];
      const knows = bidirectional ? "sees the whole word" : "sees the letters so far";
      const head = make("th", { scope: "row" }, name, make("small", {}, knows));
      return make("tr", {}, head, top.map((choices, place) => cell(choices, differs(predictions, place))));
    });
    fill(
      find("word-table"),
      make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "network"), heads)),
      make("tbody", {}, lines),
    );
    const said = predictions.map(({ labels }, at) => `${ordered[at].name} reads “${labels.join("")}”`);
    fill(find("word-said"), said.join("; "));
  }

  function sample({ label, frames }) {
    return make("button", { onclick: () => setLetters(frames) }, label);
  }
}

const differs = (predictions, place) =>
  new Set(predictions.map(({ labels }) => labels[place])).size > 1;

function cell([first, second], context) {
  const note = context ? make("span", { class: "note" }, "context") : null;
  return make(
    "td",
    { class: context ? "context" : "" },
    make("strong", {}, first.label),
    make("small", {}, percent(first.probability)),
    second ? make("small", { class: "quiet" }, make("bdi", {}, second.label), ` ${percent(second.probability)}`) : null,
    note,
  );
}

function rows(pixels) {
  return Array.from({ length: PIXELS / WIDE }, (_, y) => pixels.slice(y * WIDE, (y + 1) * WIDE));
}
