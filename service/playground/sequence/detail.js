// One sequence in detail: its features, its classes along the steps, and the code.

import { compare, isLabelled, labelOf } from "./agreement.js";
import { Answers, bodyOf } from "./answers.js";
import { code } from "../code.js";
import { count } from "../input/columns.js";
import { fill, find, make, percent } from "../dom.js";
import { features, records, text } from "./features.js";
import { aligned, plot, ribbon, runs, span } from "../plot.js";
import { Reading } from "../reading.js";
import { readsText } from "../input/texts.js";
import { word } from "../text.js";

const LINES = 8; // most classes that are drawn
const POINTS = 200; // most points of the probabilities along a sequence
const PREFIX_NUMBERS = 200_000; // most values in all prefixes of a request
const LISTED = 6; // runs of wrong steps that are named
const SYNC = "sequence"; // the charts share a cursor

/**
 * The probabilities after each step: those of the answer, streamed, or of prefixes.
 *
 * @returns {Promise<{steps: number[], probabilities: number[][]}>}
 */
export async function along(model, frames, prediction, limits) {
  if (model.task === "label") {
    const { probabilities } = prediction;
    return { steps: probabilities.map((_, step) => step + 1), probabilities };
  }
  const numbers = frames.length * model.feature_count;
  const streamed = model.streamable && model.input === "frames";
  const most = streamed ? POINTS : Math.max(1, PREFIX_NUMBERS / numbers);
  const size = Math.ceil(frames.length / Math.min(POINTS, most));
  const steps = [];
  for (let end = size; end < frames.length; end += size) steps.push(end);
  steps.push(frames.length);
  if (!streamed) {
    const prefixes = steps.map((end) => ({ name: `${end} steps`, frames: frames.slice(0, end) }));
    const answers = new Answers(model, prefixes, limits);
    await answers.all(() => true);
    return { steps, probabilities: answers.predictions.map((answer) => answer.probabilities) };
  }
  const reading = new Reading(model);
  const probabilities = [];
  try {
    for (const [place, end] of steps.entries()) {
      const answer = await reading.step(frames.slice(steps[place - 1] ?? 0, end), place === 0);
      probabilities.push(answer.probabilities);
    }
  } finally {
    reading.close();
  }
  return { steps, probabilities };
}

/**
 * Show a sequence with its answer.
 *
 * @param {object} model of `GET /models/NAME`, with the classes of the answer
 * @param {{frames: number[][], label?: string, labels?: string[]}} sequence
 * @param {object} prediction
 * @param {{steps: number[], probabilities: number[][]}} history
 */
export function detail(model, sequence, prediction, history) {
  const { frames } = sequence;
  fill(find("sequence-said"), `${model.name}: ${said(model, sequence, prediction)}`);
  const box = find("sequence-features");
  if (readsText(model)) text(box, frames);
  else if (model.input === "records") records(box, frames, model.features);
  else features(box, frames, model.features, SYNC);
  const labelled = prediction.tokens ? words : strips; // a text has tokens
  fill(find("sequence-ribbon"), model.task === "label" ? labelled(model, prediction, sequence) : null);
  lines(model, history);
  code(find("sequence-code"), model.task, bodyOf(model, [frames]), model.streamable && model.input === "frames");
}

function said({ task }, sequence, prediction) {
  if (task === "label") return `${counted(prediction.labels, prediction.tokens ? "word" : "step")}.`;
  const answer = `${prediction.label} (${percent(prediction.probability)}).`;
  const known = labelOf(sequence);
  if (known == null) return answer;
  return `${answer} ${known === prediction.label ? "✓" : "✗"} The input says ${known}.`;
}

function counted(labels, unit) {
  if (labels.length <= 40 && labels.every((label) => label.length === 1)) {
    return `“${labels.join("")}”`;
  }
  const counts = new Map();
  for (const label of labels) counts.set(label, (counts.get(label) ?? 0) + 1);
  return [...counts].map(([label, many]) => `${label} (${count(many, unit)})`).join(", ");
}

/** The words of a text with their labels. */
function words({ classes }, { tokens, probabilities }) {
  const items = tokens.map((token, at) => word(token, probabilities[at], classes));
  return [make("h3", {}, "Class of each word"), make("ol", { class: "sentence" }, items)];
}

/** The predicted classes of the steps, and below them the input's labels. */
function strips({ classes }, prediction, sequence) {
  const head = make("h3", {}, "Class of each step");
  const predicted = ribbon(prediction.labels, classes);
  if (!isLabelled(sequence, "label")) return [head, aligned(predicted)];
  const { count, wrong } = compare(sequence, prediction, "label");
  const marks = runs(sequence.frames.map((_, step) => wrong.includes(step)));
  const parts = marks.map(({ value, from, to }) => {
    const part = make("span", { class: value ? "differs" : "" });
    part.style.flexGrow = to - from + 1;
    return part;
  });
  const places = marks.filter(({ value }) => value).map(({ from, to }) => span(from, to));
  const more = places.length > LISTED ? ` and ${places.length - LISTED} more runs` : "";
  const names = wrong.length ? `: ${places.slice(0, LISTED).join(", ")}${more}` : "";
  const differ = `${wrong.length} of ${count} steps differ from the input${names}.`;
  return [
    head,
    aligned(predicted, "model"),
    aligned(make("div", { class: "marks" }, parts)),
    aligned(ribbon(sequence.labels, classes), "input"),
    aligned(make("p", { class: "quiet" }, differ)),
  ];
}

function lines({ classes, task, input }, { steps, probabilities }) {
  const likely = classes
    .map((name, place) => ({ name, place, values: probabilities.map((row) => row[place]) }))
    .sort((a, b) => Math.max(...b.values) - Math.max(...a.values))
    .slice(0, LINES)
    .sort((a, b) => a.place - b.place);
  const what = task === "label" ? "Probabilities of each step" : "Probabilities so far";
  const some = classes.length > LINES ? `: the ${LINES} likeliest of ${classes.length} classes` : "";
  const letters = { tokens: "word", characters: "letter" }[input];
  const unit = letters && task === "classify" ? "letter" : (letters ?? "step");
  const options = { sync: SYNC, end: steps.at(-1), range: [0, 1], unit };
  plot(find("sequence-classes"), `${what}${some}`, steps, likely, options);
}
