// Any sequence to any model: its features over time, and what the model makes of them.

import { ask, health } from "./api.js";
import { code } from "./code.js";
import { fill, find, make, percent } from "./dom.js";
import { plot, ribbon } from "./plot.js";
import { Reading } from "./reading.js";
import { refusal } from "./refusal.js";
import { sequences } from "./table.js";

const LINES = 8; // features, and classes, that are drawn
const POINTS = 200; // of the probabilities along a sequence
const PREFIX_STEPS = 20_000; // in all prefixes that are asked for

export function start(models, samples) {
  const choice = find("sequence-model");
  let features = []; // of the model
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
    event.preventDefault();
    const [dropped] = event.dataTransfer.files;
    if (dropped) file(dropped);
  });
  health.addEventListener("ready", () => failed && found.length && show(at));
  chosen();

  async function chosen() {
    const { name, task, feature_count, classes } = model();
    const what = task === "label" ? "a class for each step" : "one class";
    find("sequence-takes").textContent =
      `${name} takes steps of ${feature_count} numbers, and answers ${what} of ${classes.length}.`;
    find("sequence-sample").hidden = !fitting().length;
    try {
      ({ features } = await ask(`models/${name}`));
    } catch (error) {
      return fail(error, chosen);
    }
    const lines = [features.join(","), features.map(() => 0).join(",")].join("\n");
    const template = new Blob([`${lines}\n`], { type: "text/csv" });
    find("sequence-template").href = URL.createObjectURL(template);
    if (found.length) show(at);
  }

  async function file(chosenFile) {
    find("sequence-text").value = "";
    given(await chosenFile.text());
  }

  function given(text) {
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
      const [prediction] = (await ask(asked.task, body)).predictions;
      const along = asked.task === "label" ? whole(prediction) : await prefixes(asked, frames);
      if (mine !== run) return;
      refusal(find("sequence-error"));
      find("sequence-answer").hidden = false;
      say(asked, prediction, along);
      lines(asked, frames, along);
      const strip = find("sequence-ribbon");
      if (asked.task === "label") ribbon(strip, prediction.labels, asked.classes);
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
  const most = model.streamable ? POINTS : Math.max(1, PREFIX_STEPS / frames.length);
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
  for (const [place, end] of steps.entries()) {
    const answer = await reading.step(frames.slice(steps[place - 1] ?? 0, end), place === 0);
    probabilities.push(answer.probabilities);
  }
  reading.close();
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
