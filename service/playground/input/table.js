// Reads sequences from CSV, JSON or JSON lines, with the labels that the input has: of frames,
// records, or (in texts.js) text.

import { Problem } from "../api.js";
import { Mismatch, assign, checkUnused, checkWidth, count, list } from "./columns.js";
import { isNumber, parse, toNumber } from "./csv.js";
import * as json from "./json.js";
import { stepKey } from "./steps.js";
import { fitTexts, readsText } from "./texts.js";

/**
 * Read a text without knowing the model.
 *
 * @returns {object} for `fit`: a table {header, rows, delimiter}, or {sequences}
 * @throws {Problem} the text holds no sequences; its title says why
 */
export function read(text) {
  const plain = text.replace(/^\uFEFF/, "");
  if (!plain.trim()) throw fault("The input is empty.");
  const input = /^\s*[[{]/.test(plain) ? json.read(plain) : readLines(plain);
  if (!(input.rows ?? input.sequences).length) throw fault("The input holds no sequences.");
  return input;
}

/** A table, with its lines, which may also be texts. If it is none, the lines and the fault. */
function readLines(text) {
  const lines = text.split("\n").map((line) => line.trim()).filter(Boolean);
  try {
    return { ...readCsv(text), lines };
  } catch (error) {
    return { rows: lines, lines, fault: error };
  }
}

function readCsv(text) {
  const { delimiter, lines } = parse(text);
  if (!lines.length) throw fault("The input holds no sequences.");
  const [{ cells }] = lines;
  const headed = !cells.every((cell) => isNumber(cell, delimiter));
  while (headed && !cells.at(-1)) cells.pop(); // delimiters at the end of the line
  const header = headed ? cells.map((name, at) => name || `column ${at + 1}`) : null;
  const width = cells.length;
  for (const line of lines) {
    const more = line.cells.slice(width);
    if (line.cells.length >= width && more.every((cell) => !cell.trim())) continue;
    const has = `${line.cells.length} cells`;
    throw fault(`Line ${line.number} has ${has}; the first line has ${width}.`);
  }
  return { header, rows: headed ? lines.slice(1) : lines, delimiter };
}

/**
 * Fit an input to a model.
 *
 * @param {object} input of `read`
 * @param {{name: string, features: string[]}} model
 * @returns {{sequences: {name: string, frames: number[][], labels?: string[],
 *   label?: string, steps?: string[]}[], unused: string[], names: object}} `frames` in the
 *   order of the model's features; `labels` of the steps and `label` of the sequence as the
 *   input has them; names of the columns without a use, and of `sequence` and `step`
 * @throws {Mismatch} the input is for another model
 * @throws {Problem} a cell is not a number, or the rows are not in order
 */
export function fit(input, model) {
  if (readsText(model)) return fitTexts(input, model);
  if (input.fault) throw input.fault;
  return input.rows ? fitTable(input, model) : fitSequences(input, model);
}

/** Returns true if the features of an input are those of a model, even if it has other faults. */
export function fits(input, model) {
  try {
    if (readsText(model)) fitTexts(input, model);
    else if (input.fault) return false;
    else if (input.rows) columnsOf(input, model);
    else for (const sequence of input.sequences) framesOf(sequence, model);
  } catch (error) {
    if (error instanceof Problem) return !(error instanceof Mismatch);
    throw error;
  }
  return true;
}

function fitSequences({ sequences }, model) {
  const unused = new Set();
  const all = sequences.map((sequence) => {
    const { frames, extra = [] } = framesOf(sequence, model);
    for (const name of extra) unused.add(name);
    const { name, labels } = sequence;
    if (labels && labels.length !== frames.length) {
      throw fault(`${name} has ${labels.length} labels, but ${frames.length} steps.`);
    }
    return { ...sequence, frames };
  });
  return { sequences: all, unused: [...unused], names: {} };
}

/** The steps of a sequence whose steps are lists or, with names, objects. */
function framesOf({ name, frames, header, flat, text, records }, model) {
  const { length } = model.features;
  if (Boolean(records) !== isOfRecords(model) || text != null) {
    const holds = text != null ? "texts" : records ? "records" : "lists of numbers";
    throw new Mismatch(`The input holds ${holds}; ${model.name} reads ${readBy(model)}.`);
  }
  if (records) {
    assign([...new Set(records.flatMap(Object.keys))], model);
    return { frames: records };
  }
  if (flat && length > 1) {
    checkWidth(flat.length, model);
    return { frames: [flat] };
  }
  if (!header) {
    const other = frames.find((frame) => frame.length !== frames[0].length);
    if (other) {
      const at = frames.indexOf(other);
      const has = `${other.length} features, step 0 has ${frames[0].length}`;
      throw fault(`${name}, step ${at}: has ${has}.`);
    }
    checkWidth(frames[0]?.length ?? length, model);
    return { frames };
  }
  const { features, unused } = assign(header, model);
  const names = features.map((place) => header[place]);
  const values = frames.map((frame, at) => {
    const lost = names.find((key) => typeof frame[key] !== "number");
    if (lost != null) throw fault(`${name}, step ${at}: “${lost}” is not a number.`);
    return names.map((key) => frame[key]);
  });
  return { frames: values, extra: unused };
}

const isOfRecords = ({ input }) => input === "records";

const readBy = (model) =>
  isOfRecords(model) ? `records with ${list(model.features)}` : count(model.features.length, "feature");

/** The columns of a table; without a header they are features, in the model's order. */
function columnsOf({ header, rows, delimiter }, model) {
  // A header may be made of numbers.
  const first = header ?? rows[0].cells;
  const listed = model.features.every((name) => first.includes(name));
  if (header || (listed && delimiter)) {
    return { ...assign(first, model), names: first, rows: header ? rows : rows.slice(1) };
  }
  if (isOfRecords(model)) throw new Mismatch(`The input has no header; ${model.name} reads ${readBy(model)}.`);
  checkWidth(first.length, model);
  const features = first.map((_, at) => at);
  const names = features.map((at) => `column ${at + 1}`);
  return { sequence: -1, label: -1, step: -1, features, unused: [], names, rows };
}

function fitTable(input, model) {
  const columns = columnsOf(input, model);
  if (columns.step < 0 && isOfRecords(model)) {
    const time = model.features.findIndex((name) => model.kinds[name] === "time");
    columns.step = columns.features[time] ?? -1;
    columns.equal = true; // times may be equal
  }
  const groups = new Map();
  let previous;
  checkUnused(columns, model);
  if (!isOfRecords(model)) checkDecimals(columns, input.delimiter);
  for (const { cells, number } of columns.rows) {
    const name = columns.sequence < 0 ? "sequence 1" : String(cells[columns.sequence]);
    if (!groups.has(name)) groups.set(name, []);
    else if (columns.step < 0 && name !== previous) {
      throw fault(
        `Line ${number}: the sequence “${name}” appears again. Put its rows one after another,` +
          " or add a column “step” that orders them.",
      );
    }
    previous = name;
    const frame = columns.features.map((at) => {
      const name = columns.names[at];
      const kind = model.kinds?.[name] ?? "number";
      if (kind !== "number") return kind === "time" ? timeOf(cells[at]) : cells[at] === "" ? null : cells[at];
      return finite(cells[at], input.delimiter, number, name);
    });
    const entries = frame.map((value, at) => [model.features[at], value]);
    groups.get(name).push({ cells, number, frame: isOfRecords(model) ? Object.fromEntries(entries) : frame });
  }
  const sequences = [...groups].map(([name, rows]) => sequenceOf(name, rows, columns));
  if (!sequences.length) throw fault("The input holds no sequences.");
  if (columns.sequence < 0) sequences[0].id = "1";
  const { names, sequence, step } = columns;
  const special = { sequence: names[sequence], step: names[step] };
  return { sequences, unused: columns.unused, names: special };
}

/** Refuse decimal commas beside decimal points: one of them divides thousands. */
function checkDecimals({ rows, features }, delimiter) {
  if (!delimiter || delimiter === ",") return;
  const row = (mark) => rows.find(({ cells }) => features.some((at) => cells[at].includes(mark)));
  const [comma, point] = [row(","), row(".")];
  if (!comma || !point) return;
  throw fault(
    `Line ${comma.number} has a decimal comma, and line ${point.number} a decimal point: write one of them.`,
  );
}

/** Seconds as a number; all else is left to the service. */
const timeOf = (cell) => (Number.isFinite(toNumber(String(cell), ",")) ? Number(cell) : cell);

function sequenceOf(name, rows, { label, step, names, equal }) {
  const ordered = step < 0 ? rows : inOrder(name, rows, step, names[step], equal);
  const column = (at) => (at < 0 ? undefined : ordered.map(({ cells }) => String(cells[at])));
  return {
    name,
    frames: ordered.map(({ frame }) => frame),
    labels: column(label),
    steps: column(step),
  };
}

function inOrder(name, rows, step, column, equal) {
  const keyed = rows.map((row) => {
    const key = stepKey(String(row.cells[step]));
    if (key != null) return { ...row, key };
    const cell = row.cells[step];
    throw fault(
      `Line ${row.number}: “${cell}” is neither a number nor an ISO 8601 time (column “${column}”).`,
    );
  });
  keyed.sort((a, b) => (a.key < b.key ? -1 : a.key > b.key ? 1 : 0));
  keyed.forEach((row, at) => {
    const before = keyed[at - 1];
    if (before && !equal && !(before.key < row.key)) {
      const lines = `Line ${row.number}: the sequence “${name}” has the same step`;
      throw fault(`${lines} as in line ${before.number} (column “${column}”).`);
    }
  });
  return keyed;
}

function finite(cell, delimiter, line, column) {
  const value = typeof cell === "number" ? cell : toNumber(cell, delimiter);
  if (Number.isFinite(value)) return value;
  const reason = Number.isNaN(value) ? "a number is missing" : `“${cell}” is not a number`;
  throw fault(`Line ${line}: ${reason} (column “${column}”).`);
}

const fault = (title) => new Problem(0, { title });
