// Reads JSON and JSON lines: sequences of steps, requests of the API, or rows of a table.

import { Problem } from "../api.js";

/**
 * @param {string} text a value, or one on each line
 * @returns {object} a table {header, rows, delimiter}, or {sequences}: their frames are
 *   lists, or objects with the names in `header`
 */
export function read(text) {
  const values = valuesOf(text);
  const items = values.length === 1 && Array.isArray(values[0]) ? values[0] : values;
  if (items.length && items.every((item) => isObject(item) && !holdsFrames(item))) {
    return tableOf(items);
  }
  const all = values.flatMap(sequencesOf);
  return {
    sequences: all.map(({ id, ...sequence }, at) => {
      const name = id == null ? `sequence ${at + 1}` : String(id);
      return { name, id: String(id ?? at + 1), ...sequence };
    }),
  };
}

function valuesOf(text) {
  try {
    return [JSON.parse(text)];
  } catch (error) {
    const lines = text.split("\n").filter((line) => line.trim());
    if (lines.length === 1 || lines[0].trim().length < 2) {
      throw fault(`Invalid JSON: ${error.message}`);
    }
    const values = lines.map((line, at) => {
      try {
        return JSON.parse(line);
      } catch {
        throw fault(`Line ${at + 1}: invalid JSON.`);
      }
    });
    // Each line is a step.
    return values.every((value) => depth(value) === 1) ? [values] : values;
  }
}

function sequencesOf(value) {
  if (Array.isArray(value) && value.length && value.every(holdsFrames)) {
    return value.flatMap(sequencesOf);
  }
  if (Array.isArray(value?.texts)) return value.texts.map((text) => ({ text }));
  const inner = isObject(value)
    ? (value.sequences ?? value.frames ?? value.instances ?? value)
    : value;
  const { id, label, labels } = isObject(value) ? value : {};
  const known = {
    id,
    label: label == null ? undefined : String(label),
    labels: Array.isArray(labels) ? labels.map(String) : undefined,
  };
  if (Array.isArray(value?.records)) {
    const { records } = value;
    if (isObject(records[0])) return [{ ...known, records }];
    return records.map((each) => ({ records: each }));
  }
  if (depth(inner) === 1 && isObject(inner[0])) {
    return [{ ...known, frames: inner, header: Object.keys(inner[0]) }];
  }
  // Numbers are one step, or with `frames` steps of one feature.
  if (depth(inner) === 1) {
    return [{ ...known, frames: inner.map((number) => [number]), flat: inner }];
  }
  if (depth(inner) === 2) return [{ ...known, frames: inner }];
  if (depth(inner) === 3) return inner.map((frames) => ({ frames }));
  throw fault("Expected a list of steps, each a list of numbers; or a list of such sequences.");
}

/** Objects that are a step each, as rows of a table. */
function tableOf(items) {
  const header = [...new Set(items.flatMap(Object.keys))];
  const rows = items.map((item, at) => {
    return { cells: header.map((name) => cellOf(item[name])), number: at + 1 };
  });
  return { header, rows };
}

const cellOf = (value) => (typeof value === "number" ? value : String(value ?? ""));

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

const holdsFrames = (value) =>
  isObject(value) &&
  ["frames", "sequences", "instances", "texts", "records"].some((key) => Array.isArray(value[key]));

const depth = (value) => (Array.isArray(value) ? 1 + depth(value[0]) : 0);

const fault = (title) => new Problem(0, { title });
