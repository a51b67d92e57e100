// Finds the columns of a model's features by their names, and those of a special meaning.

import { Problem } from "../api.js";

export const SPECIAL = ["sequence", "label", "step"];
export const SPLIT = "split"; // the part of a data set: not used here
// Names of columns of ids, as others give them; without separators and in lower case.
const USUAL_IDS = ["id", "sequenceid", "series", "seriesid", "run", "session", "sample"];
const NEAR = 0.4; // largest share of the characters that differ in a name that is meant
const LISTED = 8; // names in a message

/** An input whose columns, or whose number of features, are not those of the model. */
export class Mismatch extends Problem {
  constructor(title, detail) {
    super(0, { title, detail });
  }
}

/**
 * @param {string[]} header names of the columns
 * @param {{name: string, features: string[], training?: object}} model
 * @returns {{sequence: number, label: number, step: number, features: number[],
 *   unused: string[]}} indices of columns, -1 if there is none; `features` in the order of
 *   the model's; the names of columns without a use
 * @throws {Mismatch} a feature is missing; its detail has the name that is most like it
 */
export function assign(header, model) {
  const { features } = model;
  const doubled = header.find((name, at) => header.indexOf(name) !== at);
  if (doubled != null) throw new Problem(0, { title: `The column “${doubled}” is repeated.` });
  const places = {};
  for (const meaning of SPECIAL) {
    const chosen = model.training?.columns?.[meaning];
    const name = header.includes(chosen) ? chosen : meaning;
    // A feature may have the name of a special column.
    places[meaning] = features.includes(name) && name !== chosen ? -1 : header.indexOf(name);
  }
  const special = Object.values(places);
  const rest = header.filter((name, at) => {
    return !special.includes(at) && (name !== SPLIT || features.includes(SPLIT));
  });
  const names = match(rest, model);
  const unused = rest.filter((name) => !names.includes(name));
  return { ...places, features: names.map((name) => header.indexOf(name)), unused };
}

/**
 * Refuse a table if a column that isn't used may be that of the ids or of the steps.
 * Without it the answers would be different ones, and no less certain.
 */
export function checkUnused({ unused, ...places }, model) {
  for (const meaning of ["sequence", "step"]) {
    if (places[meaning] >= 0) continue;
    const chosen = model.training?.columns?.[meaning];
    const usual = meaning === "sequence" ? [meaning, ...USUAL_IDS] : [];
    const near =
      (chosen && nearest(chosen, unused)) ?? unused.find((name) => usual.includes(plain(name)));
    if (near == null) continue;
    const title = chosen
      ? `The column “${chosen}” of ${model.name} is missing.`
      : `There is no column “${meaning}”.`;
    throw new Problem(0, { title, detail: `Is it “${near}”? Rename it, or remove it.` });
  }
}

/** The columns of the features, in their order. */
function match(columns, { name, features }) {
  const lost = features.filter((feature) => !columns.includes(feature));
  if (!lost.length) return features;
  const nameless = features.every((feature, at) => feature === `x${at}`);
  if (nameless && lost.length === features.length) {
    // The model's features have no names.
    if (columns.length === features.length) return columns;
    throw new Mismatch(
      `The input has ${count(columns.length, "column")} of numbers; ${name} takes ${features.length}.`,
      `The columns are ${list(columns)}. The features of ${name} have no names.`,
    );
  }
  const free = columns.filter((column) => !features.includes(column));
  const hints = lost.slice(0, LISTED).map((feature) => {
    const near = nearest(feature, free);
    return near == null ? `“${feature}”` : `“${feature}” (is it “${near}”?)`;
  });
  const more = lost.length > LISTED ? ` and ${lost.length - LISTED} more` : "";
  const are = lost.length === 1 ? "is" : "are";
  throw new Mismatch(
    `${count(lost.length, "feature")} of ${name} ${are} missing in the input.`,
    `Missing: ${hints.join(", ")}${more}. The other columns are: ${list(free) || "none"}.`,
  );
}

/** Check the number of features of steps that have no names. */
export function checkWidth(width, { name, features }) {
  if (width === features.length) return;
  throw new Mismatch(
    `The input has ${count(width, "feature")} per step; ${name} takes ${features.length}.`,
  );
}

const plain = (text) => text.toLowerCase().replace(/[ _.-]/g, "");

/** The name that is most like another, apart from case and separators; undefined if none is. */
export function nearest(name, known) {
  const wanted = plain(name);
  const ranked = known
    .map((other) => {
      const size = Math.max(wanted.length, plain(other).length, 1);
      return { other, share: distance(wanted, plain(other)) / size };
    })
    .sort((a, b) => a.share - b.share);
  return ranked[0]?.share <= NEAR ? ranked[0].other : undefined;
}

/** Edits (Levenshtein) between two texts. */
function distance(a, b) {
  let row = Array.from({ length: b.length + 1 }, (_, at) => at);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const replaced = row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(replaced, row[j] + 1, next[j - 1] + 1));
    }
    row = next;
  }
  return row[b.length];
}

export const count = (number, noun) =>
  `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

/** Names in a sentence; long lists are cut. */
export function list(names) {
  const some = names.slice(0, LISTED).join(", ");
  return names.length > LISTED ? `${some} and ${names.length - LISTED} more` : some;
}
