// Any sequence to any model: its features over time, and what the model makes of them.

import { ask, health } from "./api.js";
import { code } from "./code.js";
import { fill, find, make, percent } from "./dom.js";
import { plot, ribbon } from "./plot.js";
import { Reading } from "./reading.js";
import { refusal } from "./refusal.js";
import { csvLine, sequences } from "./table.js";

const LINES = 8; // features, and classes, that are drawn
const SHOWN = 100_000; // characters of a file, in the text area
const POINTS = 200; // of the probabilities along a sequence
const PREFIX_NUMBERS = 200_000; // in all beginnings that are asked for

export function start(models, samples) {
  const choice = find("sequence-model");
  let features = []; // of the model
  let text = ""; // as it was given, for another model too
  let found = [];
  let at = 0;
  let failed = false;
  let run = 0;

  const model = () => models.find(({ name }) => name === choice.value);
  const fitting = () => samples.filter(({ frames }) => frames[0].length === model().feature_count);

  fill(choice, models.map(({ name }) => make("option", {}, name)));
  choice.onchange = chosen;
  find("sequence-file").onchange = ({ target }) => target.files[0] && file(target.files[0]);
  find("sequence-read").onclick = () => given(find("sequence-text").value);
  find("sequence-sample").onclick = () => {
    const { frames } = fitting()[Math.floor(Math.random() * fitting().length)];
    given(JSON.stringify(frames));
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
  health.addEventListener("ready", () => failed && found.length && show(at));
  chosen();

  async function chosen() {
    const { name, task, feature_count, classes } = model();
    const what = task === "label" ? "a class for each step" : "one class";
    find("sequence-takes").textContent =
      `${name} takes steps of ${feature_count} numbers, and answers ${what} of ${classes.length}.`;
    find("sequence-sample").hidden = !fitting().length;
    features = [];
    let told;
    try {
      told = await ask(`models/${name}`);
    } catch (error) {
      return name === choice.value && fail(error, chosen);
    }
    if (name !== choice.value) return; // another was chosen meanwhile
    ({ features } = told);
    const lines = [csvLine(features), features.map(() => 0).join(",")].join("\n");
    const template = new Blob([`${lines}\n`], { type: "text/csv" });
    URL.revokeObjectURL(find("sequence-template").href);
    find("sequence-template").href = URL.createObjectURL(template);
    if (text) given(text);
  }

  async function file(chosenFile) {
    find("sequence-text").value = "";
    let read;
    try {
      read = await chosenFile.text();
    } catch (error) {
      return fail(error);
    }
    find("sequence-file").value = ""; // so that the same can be chosen again
    if (read.length < SHOWN) find("sequence-text").value = read;
    given(read);
  }

  function given(fresh) {
    run++;
    text = fresh;
    found = [];
    if (!features.length) return; // as soon as they are known
    try {
      found = sequences(text, features);
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
    const mine = ++run;
    at = place;
    failed = false;
    const asked = model();
    const { name, frames } = found[at];
    const body = { model: asked.name, sequences: [frames] };
    find("sequence-which").textContent = `${name}: ${at + 1} of ${found.length}`;
    find("sequence-before").disabled = at === 0;
    find("sequence-after").disabled = at === found.length - 1;
    try {
      const { predictions, classes } = await ask(asked.task, body);
      const [prediction] = predictions;
      const along = asked.task === "label" ? whole(prediction) : await prefixes(asked, frames);
      if (mine !== run) return;
      refusal(find("sequence-error"));
      find("sequence-answer").hidden = false;
      say(asked, prediction, along);
      lines({ ...asked, classes }, frames, along); // classes as they are by now
      const strip = find("sequence-ribbon");
      if (asked.task === "label") ribbon(strip, prediction.labels, classes);
      else fill(strip);
      code(find("sequence-code"), asked.task, body, asked.streamable);
    } catch (error) {
      if (mine === run) fail(error, () => show(at));
    }
  }

  function lines(asked, frames, { steps, probabilities }) {
    const varied = features
      .map((name, place) => ({ name, values: frames.map((frame) => frame[place]) }))
      .sort((a, b) => spread(b.values) - spread(a.values));
    const some = varied.length > LINES ? `: the ${LINES} of ${varied.length} that vary most` : "";
    const x = frames.map((_, step) => step + 1);
    const options = { sync: "sequence", end: frames.length };
    plot(find("sequence-features"), `Features${some}`, x, varied.slice(0, LINES), options);
    const likely = asked.classes
      .map((name, place) => ({ name, values: probabilities.map((row) => row[place]) }))
      .sort((a, b) => Math.max(...b.values) - Math.max(...a.values));
    const title = asked.task === "label" ? "Probabilities of each step" : "Probabilities so far";
    const shown = likely.slice(0, LINES);
    plot(find("sequence-classes"), title, steps, shown, { ...options, range: [0, 1] });
  }
}

const spread = (values) => Math.max(...values) - Math.min(...values);

const whole = ({ probabilities }) => ({
  steps: probabilities.map((_, step) => step + 1),
  probabilities,
});

/** What the model believes along a sequence: streamed, or asked of its beginnings. */
async function prefixes(model, frames) {
  const numbers = frames.length * frames[0].length;
  const most = model.streamable ? POINTS : Math.max(1, PREFIX_NUMBERS / numbers);
  const size = Math.ceil(frames.length / Math.min(POINTS, most));
  const steps = [];
  for (let end = size; end < frames.length; end += size) steps.push(end);
  steps.push(frames.length);
  if (!model.streamable) {
    const beginnings = steps.map((end) => frames.slice(0, end));
    const { predictions } = await ask("classify", { model: model.name, sequences: beginnings });
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

function say(model, prediction, { probabilities }) {
  const steps = probabilities.length;
  find("sequence-said").textContent =
    model.task === "classify"
      ? `${model.name} says ${prediction.label}, ${percent(Math.max(...probabilities[steps - 1]))} sure.`
      : `${model.name} says ${counted(prediction.labels)}.`;
}

function counted(labels) {
  if (labels.length <= 40 && labels.every((label) => label.length === 1)) {
    return `“${labels.join("")}”`;
  }
  const counts = new Map();
  for (const label of labels) counts.set(label, (counts.get(label) ?? 0) + 1);
  return [...counts].map(([label, count]) => `${label} at ${count} steps`).join(", ");
}
