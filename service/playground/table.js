// Parses sequences from CSV, JSON or JSON lines.

import { Problem } from "./api.js";

const NOT_FEATURES = ["sequence", "step", "label", "split"]; // columns

/**
 * @param {string} text
 * @param {string[]} features the model's names, by which a header's columns are ordered
 * @returns {{name: string, frames: number[][]}[]}
 * @throws {Problem} the text holds no sequences; its title says why
 */
export function sequences(text, features) {
  const plain = text.replace(/^\uFEFF/, "");
  if (!plain.trim()) throw fault("The input is empty.");
  const parsed = /^\s*[[{]/.test(plain) ? fromJson(plain, features) : fromCsv(plain, features);
  if (!parsed.length) throw fault("The input holds no sequences.");
  return parsed;
}

function fromJson(text, features) {
  let values;
  try {
    values = [JSON.parse(text)];
  } catch (error) {
    const lines = text.split("\n").filter((line) => line.trim());
    if (lines.length === 1 || lines[0].trim().length < 2) throw fault(`Invalid JSON: ${error.message}`);
    values = lines.map((line, at) => {
      try {
        return JSON.parse(line);
      } catch {
        throw fault(`Line ${at + 1}: invalid JSON.`);
      }
    });
    if (values.every((value) => Array.isArray(value) && depth(value) === 1)) values = [values];
  }
  const all = values.flatMap((value) => {
    const inner = value.sequences ?? value.frames ?? value.instances ?? value;
    if (depth(inner) === 1) return [features.length > 1 ? [inner] : inner.map((value) => [value])];
    if (depth(inner) === 2) return [inner];
    if (depth(inner) === 3) return inner;
    throw fault("Expected a list of steps, each a list of numbers; or a list of such sequences.");
  });
  return all.map((frames, at) => ({ name: `sequence ${at + 1}`, frames }));
}

const fault = (title) => new Problem(0, { title });

const depth = (value) => (Array.isArray(value) ? 1 + depth(value[0]) : 0);

function fromCsv(text, features) {
  const lines = text.split(/\r?\n/).map((line, at) => ({ line, number: at + 1 }));
  const filled = lines.filter(({ line }) => line.trim());
  const separator = [";", "\t", ","].find((mark) => filled[0].line.includes(mark)) ?? ",";
  const rows = filled.map(({ line, number }) => {
    return { cells: cellsOf(line, separator), number };
  });
  const listed = features.every((name) => rows[0].cells.includes(name));
  const headed = listed || rows[0].cells.some((cell) => Number.isNaN(Number(cell)));
  const header = headed ? rows.shift().cells : rows[0].cells.map(() => "");
  const named = features.every((name) => header.includes(name));
  const columns = named
    ? features.map((name) => header.indexOf(name))
    : header.map((_, at) => at).filter((at) => !NOT_FEATURES.includes(header[at]));
  const group = header.indexOf("sequence");
  const groups = new Map();
  for (const { cells, number } of rows) {
    if (cells.length !== header.length) {
      throw fault(`Line ${number} has ${cells.length} cells; the first line has ${header.length}.`);
    }
    const frame = columns.map((at) => {
      const value = cells[at] === "" ? NaN : Number(cells[at]);
      if (Number.isNaN(value)) {
        throw fault(`Line ${number}: “${cells[at]}” is not a number (column ${at + 1}).`);
      }
      return value;
    });
    const name = group < 0 ? "sequence 1" : cells[group];
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(frame);
  }
  return [...groups].map(([name, frames]) => ({ name, frames }));
}

/** The cells of a line; a quoted cell may hold the separator, and "" for a quote. */
function cellsOf(line, separator) {
  const cells = [""];
  let quoted = false;
  for (const character of line) {
    if (character === '"') quoted = !quoted;
    if (character === separator && !quoted) cells.push("");
    else cells[cells.length - 1] += character;
  }
  return cells.map((cell) => cell.trim().replace(/^"(.*)"$/, "$1").replaceAll('""', '"'));
}

/** Join cells to a line of CSV. */
export const csvLine = (cells) =>
  cells.map((cell) => (/[",]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell)).join(",");
