// Draw a digit: its rows are streamed, and the ten probabilities move with each.

import { health } from "./api.js";
import { bars } from "./bars.js";
import { code } from "./code.js";
import { fill, find, make, percent, best } from "./dom.js";
import { Heat, decided } from "./heat.js";
import { Pad, picture } from "./pad.js";
import { digit } from "./raster.js";
import { Reading } from "./reading.js";
import { refusal } from "./refusal.js";

const ROWS = 28;
const PACE = 30; // ms a row, so that one sees it

/** Whether a model reads such digits, row by row. */
export const fits = (model) =>
  model.task === "classify" && model.streamable && model.feature_count === ROWS;

export function start(model, samples) {
  const reading = new Reading(model);
  const heat = new Heat(find("digit-heat"), model.classes, ROWS);
  const slider = find("digit-step");
  let rows = null; // of the digit that is read
  let history = [];
  let failed = false;
  let run = 0;

  const pad = new Pad(find("digit-pad"), () => read(digit(pad.strokes)));

  fill(find("digit-classes"), model.classes.map((name) => make("span", {}, name)));
  find("digit-clear").onclick = clear;
  slider.oninput = () => show(Number(slider.value));
  health.addEventListener("ready", () => failed && rows && read(rows));
  fill(find("digit-samples"), samples.map(sample));
  clear();

  function clear() {
    run++;
    rows = null;
    history = [];
    pad.clear();
    picture(find("digit-seen"), [new Array(ROWS).fill(0)]);
    bars(find("digit-bars"), model.classes, model.classes.map(() => 0));
    show(0);
    slider.disabled = true;
    fill(find("digit-code"));
    find("digit-said").textContent = `Draw one of ${model.classes.join(" ")}.`;
    refusal(find("digit-error"));
  }

  /** Read 28 rows from the first; what is read at the time is given up. */
  async function read(drawn) {
    const mine = ++run;
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    rows = drawn;
    history = [];
    failed = false;
    slider.disabled = true;
    refusal(find("digit-error"));
    find("digit-said").textContent = "Reading it, row by row.";
    picture(find("digit-seen"), rows);
    code(find("digit-code"), "classify", { model: model.name, sequences: [rows] }, true);
    try {
      for (let at = 0; at < ROWS; at++) {
        const answer = await reading.step([rows[at]], at === 0);
        if (mine !== run) return;
        history.push(answer.probabilities);
        show(history.length);
        if (!calm) await new Promise((resolve) => setTimeout(resolve, PACE));
        if (mine !== run) return;
      }
    } catch (error) {
      if (mine !== run) return;
      failed = true;
      return refusal(find("digit-error"), error, () => read(drawn));
    }
    slider.disabled = false;
    say();
  }

  /** Show what was believed after a row, and which rows had been read by then. */
  function show(step) {
    slider.value = step;
    find("digit-row").textContent = `${step} of ${ROWS}`;
    find("digit-unread").style.top = `${(100 * step) / ROWS}%`;
    heat.show(history, step);
    if (step) bars(find("digit-bars"), model.classes, history[step - 1]);
  }

  function say() {
    const last = history.at(-1);
    const step = decided(history);
    find("digit-said").textContent =
      `It is a ${model.classes[best(last)]}, ${percent(Math.max(...last))} sure. ` +
      (step > 1 ? `Its mind was made up at row ${step}.` : "It never thought otherwise.");
  }

  function sample({ label, frames }) {
    const canvas = make("canvas");
    picture(canvas, frames);
    const choose = () => {
      pad.show(frames);
      read(frames);
    };
    return make("button", { onclick: choose, "aria-label": `Sample: a ${label}` }, canvas);
  }
}
