// The panel Models: a card for each model with its network, training and test figures.

import { ask, base, key } from "./api.js";
import { fill, find, make } from "./dom.js";
import { count } from "./input/columns.js";
import { refusal } from "./refusal.js";

const PLOTS = {
  "history.png": "Loss and error by epoch",
  "confusion.png": "True class against predicted class",
  "reliability.png": "Reliability: confidence against accuracy, before and after calibration",
  "length.png": "Accuracy by length of the sequence",
};

const pictures = []; // object URLs of plots that were fetched with a key

export async function show() {
  refusal(find("models-error"));
  for (const url of pictures.splice(0)) URL.revokeObjectURL(url);
  try {
    const { models, broken } = await ask("models");
    const cards = await Promise.all(models.map(({ name }) => cardOf(name)));
    const faults = Object.entries(broken).map(([name, reason]) =>
      make("article", { class: "card" }, make("h3", {}, `${name}: broken`), make("p", {}, reason)),
    );
    fill(find("models-cards"), cards, faults);
  } catch (error) {
    refusal(find("models-error"), error, show);
  }
}

/** A model's card; null if the model was unloaded meanwhile. */
async function cardOf(name) {
  try {
    return await card(await ask(`models/${name}`));
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

async function card(model) {
  const { training, bidirectional, cell, layers, hidden } = model;
  const direction = bidirectional ? "both directions" : "forward, streamable";
  const epochs = training.parts.cross_validation
    ? `${training.epochs} epochs`
    : `best epoch ${training.best_epoch} of ${training.epochs}`;
  const facts = {
    network: `${cell.toUpperCase()}, ${layers} × ${hidden}, ${direction}`,
    input: `${reads(model)}; trained on up to ${model.longest_trained} steps`,
    engine: `${model.engine}, ${model.precision} (${model.engine_reason})`,
    versions: model.versions.join(", "),
    trained: `${training.created} on ${training.source}, ${epochs}, seed ${training.seed}`,
  };
  return make(
    "article",
    { class: "card" },
    make("h3", {}, `${model.name} `, make("small", {}, `version ${model.version} · ${model.task}`)),
    make("dl", {}, Object.entries(facts).map(fact)),
    errors(training.parts),
    make("div", { class: "plots" }, await Promise.all(model.plots.map((path) => image(model, path)))),
    list(`${model.classes.length} classes`, model.classes),
    list(`${model.features.length} features`, model.features),
    make("p", { class: "quiet digest" }, `bundle ${model.digest}`),
  );
}

const fact = ([name, value]) => [make("dt", {}, name), make("dd", {}, value)];

function list(title, names) {
  return make("details", {}, make("summary", {}, title), make("p", {}, names.join(", ")));
}

/** The errors of each part; older bundles have no intervals. */
function errors(parts) {
  const sure = Object.values(parts).some(({ intervals }) => intervals);
  const head = ["part", "answers", "error", "ECE", ...(sure ? ["ECE by chance"] : [])];
  const row = ([name, part]) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, name.replace("_", "-")),
      make("td", {}, part.count.toLocaleString("en")),
      metric(part.error, part.intervals?.error),
      metric(part.calibration_error, part.intervals?.calibration_error),
      sure ? metric(part.calibration_error_by_chance) : null,
    );
  const table = make(
    "table",
    {},
    make("thead", {}, make("tr", {}, head.map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, Object.entries(parts).map(row)),
  );
  const note =
    "ECE: expected calibration error" +
    (sure ? "; by chance: that of a perfectly calibrated network on as many answers." : ".") +
    (sure ? " In brackets: 95 % intervals." : "");
  return [
    make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Errors" }, table),
    make("p", { class: "quiet" }, note),
  ];
}

/** A cell with a percentage and its 95 % interval, if it is known. */
function metric(value, interval) {
  if (value == null) return make("td", {}, "–");
  const [low, high] = (interval ?? []).map((end) => end.toFixed(2));
  const range = interval ? make("small", {}, ` (${low} to ${high})`) : null;
  return make("td", {}, `${value.toFixed(2)}\u00a0%`, range);
}

/** A plot of the report; where a key is needed it is fetched, since `img` sends no header. */
async function image(model, path) {
  const file = path.split("/").at(-1);
  let src = new URL(path.slice(1), base).href;
  if (key()) {
    const answer = await fetch(src, { headers: { "X-API-Key": key() } });
    if (!answer.ok) return null;
    src = URL.createObjectURL(await answer.blob());
    pictures.push(src);
  }
  const alt = `${model.name}: ${PLOTS[file] ?? file}`;
  return make("a", { href: src }, make("img", { src, alt, loading: "lazy" }));
}

/** Returns what a model reads at each step. */
export function reads({ input, feature_count, kinds }) {
  if (input === "tokens") return "a word per step";
  if (input === "characters") return "a character per step";
  if (input === "records") return kinds ? `a record per step: ${Object.keys(kinds).join(", ")}` : "a record per step";
  return `${count(feature_count, "feature")} per step`;
}
