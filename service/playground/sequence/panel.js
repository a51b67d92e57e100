// The panel Your sequence: any file to any model; the answers to all of its sequences.

import { Answers } from "./answers.js";
import { ask, health } from "../api.js";
import { Mismatch, count } from "../input/columns.js";
import { csvLine } from "../input/csv.js";
import { along, detail } from "./detail.js";
import { fill, find, make } from "../dom.js";
import { reads } from "../models.js";
import { refusal } from "../refusal.js";
import { Results } from "./results.js";
import { fit, fits, read } from "../input/table.js";
import { readsText } from "../input/texts.js";

const SHOWN = 100_000; // longest file, in characters, that the text area shows
const NAMED = 10; // unused columns that are named

export function start(models, samples, limits) {
  const choice = find("sequence-model");
  const results = new Results((place) => show(place));
  const descriptions = new Map(); // promises of `GET /models/NAME`
  let described; // the chosen model; undefined until it is described
  let text = ""; // of the input, kept for when another model is chosen
  let source = ""; // name of the file
  let answers; // undefined without a readable input
  let columns; // names, of the input
  let at = 0;
  let failed = false;
  let run = 0;
  let shown = 0; // counts the sequences shown

  const model = () => models.find(({ name }) => name === choice.value);
  const fitting = () =>
    model().input === "frames"
      ? samples.filter(({ frames }) => frames[0].length === model().feature_count)
      : [];

  fill(choice, models.map(({ name }) => make("option", {}, name)));
  choice.onchange = chosen;
  const picker = find("sequence-file");
  picker.onclick = () => (picker.value = ""); // so that the same file can be chosen again
  picker.onchange = () => picker.files[0] && file(picker.files[0]);
  find("sequence-read").onclick = () => {
    const typed = find("sequence-text").value;
    // A long file is not in the text area: then it is read again.
    const again = typed ? typed === text : source;
    return again ? load() : paste(typed, "");
  };
  find("sequence-sample").onclick = sample;
  find("sequence-before").onclick = () => show(at - 1);
  find("sequence-after").onclick = () => show(at + 1);
  const zone = find("sequence");
  zone.addEventListener("dragover", (event) => event.preventDefault());
  zone.addEventListener("drop", (event) => {
    const [dropped] = event.dataTransfer.files;
    if (!dropped) return; // text, for the text area
    event.preventDefault();
    picker.files = event.dataTransfer.files; // it shows the file's name
    file(dropped);
  });
  health.addEventListener("ready", () => failed && answers && proceed());
  chosen();

  function describe(name) {
    if (!descriptions.has(name)) {
      const asked = ask(`models/${name}`);
      descriptions.set(name, asked);
      asked.catch(() => descriptions.delete(name));
    }
    return descriptions.get(name);
  }

  async function chosen() {
    const { name, task, classes } = model();
    const takes = (described) => {
      const unit = task === "label" ? "step" : "sequence";
      fill(find("sequence-takes"), `${name}: ${reads(described)}; one of ${classes.length} classes per ${unit}.`);
    };
    takes(model());
    find("sequence-sample").hidden = !fitting().length;
    described = undefined;
    let description;
    try {
      description = await describe(name);
    } catch (error) {
      return name === choice.value && fail(error, chosen);
    }
    if (name !== choice.value) return; // another model was chosen meanwhile
    described = description;
    takes(described);
    find("sequence-sample").hidden = !fitting().length && !examples();
    const template = new Blob([`${rows().map(csvLine).join("\n")}\n`], { type: "text/csv" });
    URL.revokeObjectURL(find("sequence-template").href);
    find("sequence-template").href = URL.createObjectURL(template);
    if (text) load();
  }

  /** The example of a request to a model that doesn't read frames. */
  const examples = () => described.example?.texts ?? described.example?.records;

  /** A header, and a row or two below it. */
  function rows() {
    const { features, input } = described;
    if (input === "frames") return [features, features.map(() => 0)];
    if (readsText(described)) return [["text"], ...(examples() ?? []).map((text) => [text])];
    return [features, ...(examples() ?? []).flat().map((record) => features.map((name) => record[name]))];
  }

  async function file(chosenFile) {
    find("sequence-text").value = "";
    let content;
    try {
      content = await chosenFile.text();
    } catch (error) {
      return fail(error);
    }
    if (content.length < SHOWN) find("sequence-text").value = content;
    text = content;
    source = chosenFile.name;
    load();
  }

  function paste(content, name) {
    picker.value = "";
    text = content;
    source = name;
    load();
  }

  function sample() {
    if (!fitting().length) return paste(JSON.stringify(described.example), "an example");
    const { label, frames } = fitting()[Math.floor(Math.random() * fitting().length)];
    const { task, classes } = model();
    const known = task === "label" ? { labels: [...label] } : { label };
    const names = known.labels ?? [label];
    const item = names.every((name) => classes.includes(name)) ? { frames, ...known } : { frames };
    paste(JSON.stringify(item), "a test sample");
  }

  /** Fit the text to the model, show its first sequence and ask for all. */
  function load() {
    run++;
    answers = undefined;
    fill(find("sequence-source"), source ? make("strong", {}, source) : null);
    if (!described) return; // loaded again once it is
    let input;
    try {
      input = read(text);
      const { sequences, unused, names } = fit(input, described);
      columns = names;
      answers = new Answers(described, sequences, limits);
      describeInput(sequences, unused);
    } catch (error) {
      fail(error);
      if (error instanceof Mismatch || input?.fault) offer(input, error);
      return;
    }
    at = 0;
    proceed();
  }

  function describeInput(sequences, unused) {
    const steps = sequences.reduce((sum, { frames }) => sum + frames.length, 0);
    const unit = readsText(described) ? "letter" : described.input === "records" ? "record" : "step";
    const named = unused.slice(0, NAMED).map((name) => `“${name}”`).join(", ");
    const noun = unused.length === 1 ? "column" : "columns";
    const more = unused.length > NAMED ? ` and ${unused.length - NAMED} more` : "";
    fill(
      find("sequence-source"),
      make("strong", {}, source || "The text"),
      `: ${count(sequences.length, "sequence")}, ${count(steps, unit)}.`,
      unused.length ? ` ${described.name} does not use the ${noun} ${named}${more}.` : null,
    );
  }

  function fail(error, again) {
    failed = true;
    find("sequence-answer").hidden = true;
    refusal(find("sequence-error"), error, again);
  }

  /** Offer the models that the input fits. */
  async function offer(input, error) {
    const thisRun = run;
    const all = await Promise.all(models.map(({ name }) => describe(name).catch(() => null)));
    if (thisRun !== run) return;
    const fitted = all.filter((description) => description && fits(input, description));
    const use = ({ name }) => () => {
      choice.value = name;
      chosen();
    };
    const buttons = fitted.map((description) => {
      return make("button", { onclick: use(description) }, `Use ${description.name}`);
    });
    if (!fitted.length && !(error instanceof Mismatch)) return;
    const none = "No other model in service has these features.";
    find("sequence-error").append(
      make("p", {}, fitted.length ? "The input fits:" : none),
      make("div", { class: "buttons" }, buttons),
    );
  }

  /** Show the chosen sequence, then ask for all that have no answer yet. */
  async function proceed() {
    const thisRun = ++run;
    const { length } = answers.sequences;
    failed = false;
    if (!(await show(at)) || thisRun !== run) return;
    const more = () => {
      if (thisRun === run) results.show(answers, downloadName(), columns);
      return thisRun === run;
    };
    try {
      if (more() && length > 1) await answers.all(more);
    } catch (error) {
      if (thisRun === run) fail(error, proceed);
    }
  }

  const downloadName = () => `${source.replace(/\.\w+$/, "") || "text"}-answers.csv`;

  /** Show a sequence; returns true unless that failed or another one is shown meanwhile. */
  async function show(place) {
    const thisShow = ++shown;
    const current = answers;
    at = place;
    const { name, frames } = current.sequences[at];
    const { length } = current.sequences;
    fill(find("sequence-which"), `${name}: ${at + 1} of ${length}`);
    find("sequence-before").disabled = at === 0;
    find("sequence-after").disabled = at === length - 1;
    const stale = () => thisShow !== shown || current !== answers;
    try {
      const prediction = await current.one(place);
      const history = await along(current.model, frames, prediction, limits);
      if (stale()) return current === answers;
      refusal(find("sequence-error"));
      find("sequence-answer").hidden = false;
      const used = { ...current.model, classes: current.classes };
      detail(used, current.sequences[place], prediction, history);
      results.mark(place);
      return true;
    } catch (error) {
      if (!stale()) fail(error, proceed);
      return false;
    }
  }
}
