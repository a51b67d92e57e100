// The panel Your sequence: any sequence to any model, its features and the prediction.

import { ask, health } from "./api.js";
import { code } from "./code.js";
import { fill, find, make, percent } from "./dom.js";
import { plot, ribbon } from "./plot.js";
import { Reading } from "./reading.js";
import { refusal } from "./refusal.js";
import { csvLine, sequences } from "./table.js";

const LINES = 8; // most features, and most classes, that are drawn
const SHOWN = 100_000; // longest file, in characters, that the text area shows
const POINTS = 200; // most points of the probabilities along a sequence
const PREFIX_NUMBERS = 200_000; // most values in all prefixes of a request

export function start(models, samples) {
  const choice = find("sequence-model");
  let features = []; // names of the model's features
  let text = ""; // of the input, kept for when another model is chosen
  let inputs = [];
  let at = 0;
  let failed = false;
  let run = 0;

  const model = () => models.find(({ name }) => name === choice.value);
  const fitting = () => samples.filter(({ frames }) => frames[0].length === model().feature_count);

  fill(choice, models.map(({ name }) => make("option", {}, name)));
  choice.onchange = chosen;
  find("sequence-file").onchange = ({ target }) => target.files[0] && file(target.files[0]);
  find("sequence-read").onclick = () => load(find("sequence-text").value);
  find("sequence-sample").onclick = () => {
    const { frames } = fitting()[Math.floor(Math.random() * fitting().length)];
    load(JSON.stringify(frames));
  };
  find("sequence-before").onclick = () => show(at - 1);
  find("sequence-after").onclick = () => show(at + 1);
  const zone = find("sequence");
  zone.addEventListener("dragover", (event) => event.preventDefault());
  zone.addEventListener("drop", (event) => {
    const [dropped] = event.dataTransfer.files;
    if (!dropped) return; // text, for the text area
    event.preventDefault();
    file(dropped);
  });
  health.addEventListener("ready", () => failed && inputs.length && show(at));
  chosen();

  async function chosen() {
    const { name, task, feature_count, classes } = model();
    const unit = task === "label" ? "step" : "sequence";
    find("sequence-takes").textContent =
      `${name}: ${feature_count} features per step, one of ${classes.length} classes per ${unit}.`;
    find("sequence-sample").hidden = !fitting().length;
    features = [];
    let description;
    try {
      description = await ask(`models/${name}`);
    } catch (error) {
      return name === choice.value && fail(error, chosen);
    }
    if (name !== choice.value) return; // another model was chosen meanwhile
    ({ features } = description);
    const lines = [csvLine(features), features.map(() => 0).join(",")].join("\n");
    const template = new Blob([`${lines}\n`], { type: "text/csv" });
    URL.revokeObjectURL(find("sequence-template").href);
    find("sequence-template").href = URL.createObjectURL(template);
    if (text) load(text);
  }

  async function file(chosenFile) {
    find("sequence-text").value = "";
    let content;
    try {
      content = await chosenFile.text();
    } catch (error) {
      return fail(error);
    }
    find("sequence-file").value = ""; // so that the same file can be chosen again
    if (content.length < SHOWN) find("sequence-text").value = content;
    load(content);
  }

  function load(input) {
    run++;
    text = input;
    inputs = [];
    if (!features.length) return; // loaded again once they are known
    try {
      inputs = sequences(text, features);
    } catch (error) {
      return fail(error);
    }
    show(0);
  }

  function fail(error, again) {
    failed = true;
    find("sequence-answer").hidden = true;
    refusal(find("sequence-error"), error, again);
  }

  async function show(place) {
    const thisRun = ++run;
    at = place;
    failed = false;
    const used = model();
    const { name, frames } = inputs[at];
    const body = { model: used.name, sequences: [frames] };
    find("sequence-which").textContent = `${name}: ${at + 1} of ${inputs.length}`;
    find("sequence-before").disabled = at === 0;
    find("sequence-after").disabled = at === inputs.length - 1;
    try {
      const { predictions, classes } = await ask(used.task, body);
      const [prediction] = predictions;
      const along = used.task === "label" ? whole(prediction) : await prefixes(used, frames);
      if (thisRun !== run) return;
      refusal(find("sequence-error"));
      find("sequence-answer").hidden = false;
      summarize(used, prediction, along);
      lines({ ...used, classes }, frames, along); // the classes of the answer
      const strip = find("sequence-ribbon");
      if (used.task === "label") ribbon(strip, prediction.labels, classes);
      else fill(strip);
      code(find("sequence-code"), used.task, body, used.streamable);
    } catch (error) {
      if (thisRun === run) fail(error, () => show(at));
    }
  }

  function lines(used, frames, { steps, probabilities }) {
    const varied = features
      .map((name, place) => ({ name, values: frames.map((frame) => frame[place]) }))
      .sort((a, b) => spread(b.values) - spread(a.values));
    const some = varied.length > LINES ? `: the ${LINES} of ${varied.length} that vary most` : "";
    const x = frames.map((_, step) => step + 1);
    const options = { sync: "sequence", end: frames.length };
    plot(find("sequence-features"), `Features${some}`, x, varied.slice(0, LINES), options);
    const likely = used.classes
      .map((name, place) => ({ name, values: probabilities.map((row) => row[place]) }))
      .sort((a, b) => Math.max(...b.values) - Math.max(...a.values));
    const title = used.task === "label" ? "Probabilities of each step" : "Probabilities so far";
    const shown = likely.slice(0, LINES);
    plot(find("sequence-classes"), title, steps, shown, { ...options, range: [0, 1] });
  }
}

const spread = (values) => Math.max(...values) - Math.min(...values);

const whole = ({ probabilities }) => ({
  steps: probabilities.map((_, step) => step + 1),
  probabilities,
});

/** The probabilities along a sequence: streamed, or predicted for its prefixes. */
async function prefixes(model, frames) {
  const numbers = frames.length * frames[0].length;
  const most = model.streamable ? POINTS : Math.max(1, PREFIX_NUMBERS / numbers);
  const size = Math.ceil(frames.length / Math.min(POINTS, most));
  const steps = [];
  for (let end = size; end < frames.length; end += size) steps.push(end);
  steps.push(frames.length);
  if (!model.streamable) {
    const sequences = steps.map((end) => frames.slice(0, end));
    const { predictions } = await ask("classify", { model: model.name, sequences });
    return { steps, probabilities: predictions.map(({ probabilities }) => probabilities) };
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

function summarize(model, prediction, { probabilities }) {
  const steps = probabilities.length;
  find("sequence-said").textContent =
    model.task === "classify"
      ? `${model.name}: ${prediction.label} (${percent(Math.max(...probabilities[steps - 1]))}).`
      : `${model.name}: ${counted(prediction.labels)}.`;
}

function counted(labels) {
  if (labels.length <= 40 && labels.every((label) => label.length === 1)) {
    return `“${labels.join("")}”`;
  }
  const counts = new Map();
  for (const label of labels) counts.set(label, (counts.get(label) ?? 0) + 1);
  return [...counts].map(([label, count]) => `${label} (${count} steps)`).join(", ");
}
