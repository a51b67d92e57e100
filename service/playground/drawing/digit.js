// The panel Digit: streams the rows of a drawn digit, and shows the probabilities after each.

import { health } from "../api.js";
import { bars } from "../bars.js";
import { code } from "../code.js";
import { fill, find, make, percent, best } from "../dom.js";
import { Heat, decided } from "./heat.js";
import { Pad, picture } from "./pad.js";
import { digit } from "./raster.js";
import { Reading } from "../reading.js";
import { refusal } from "../refusal.js";

const ROWS = 28;
const PACE = 30; // ms per row, so that the change can be seen

/** Returns true for a model that reads digits row by row. */
export const fits = (model) =>
  model.input === "frames" && model.task === "classify" && model.streamable && model.feature_count === ROWS;

export function start(model, samples) {
  const reading = new Reading(model);
  const heat = new Heat(find("digit-heat"), model.classes, ROWS);
  const slider = find("digit-step");
  let rows = null; // of the current digit
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
    bars(find("digit-bars"), model.classes, null);
    show(0);
    slider.disabled = true;
    fill(find("digit-code"));
    fill(find("digit-said"), `Draw one of ${model.classes.join(" ")}.`);
    refusal(find("digit-error"));
  }

  /** Stream 28 rows as a new sequence; cancels the one under way. */
  async function read(newRows) {
    const thisRun = ++run;
    const instant = matchMedia("(prefers-reduced-motion: reduce)").matches;
    rows = newRows;
    history = [];
    failed = false;
    slider.disabled = true;
    refusal(find("digit-error"));
    find("digit-said").textContent = "Reading row by row.";
    picture(find("digit-seen"), rows);
    code(find("digit-code"), "classify", { model: model.name, sequences: [rows] }, true);
    try {
      for (let at = 0; at < ROWS; at++) {
        const answer = await reading.step([rows[at]], at === 0);
        if (thisRun !== run) return;
        history.push(answer.probabilities);
        show(history.length);
        if (!instant) await new Promise((resolve) => setTimeout(resolve, PACE));
        if (thisRun !== run) return;
      }
    } catch (error) {
      if (thisRun !== run) return;
      failed = true;
      return refusal(find("digit-error"), error, () => read(newRows));
    }
    slider.disabled = false;
    summarize();
  }

  /** Show the probabilities after a row, and cover the rows that follow it. */
  function show(step) {
    slider.value = step;
    find("digit-row").textContent = `${step} of ${ROWS}`;
    find("digit-unread").style.top = `${(100 * step) / ROWS}%`;
    heat.show(history, step);
    if (step) bars(find("digit-bars"), model.classes, history[step - 1]);
  }

  function summarize() {
    const last = history.at(-1);
    const step = decided(history);
    fill(
      find("digit-said"),
      `${model.classes[best(last)]} (${percent(Math.max(...last))}). `,
      step > 1 ? `Decided at row ${step}.` : "The prediction never changed.",
    );
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
