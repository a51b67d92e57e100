// Parses CSV, with any of several delimiters, and writes it.

import { Problem } from "../api.js";

const DELIMITERS = [",", ";", "\t", "|"];
const SEPARATOR = /^sep=([^\w\s"]|\t)\r?$/i; // Excel's first line
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;
const DECIMAL_COMMA = /^[+-]?\d*,\d+(e[+-]?\d+)?$/i;
const MISSING = ["", "nan", "na", "n/a", "null", "none", "?"]; // in lower case

/**
 * @param {string} text
 * @returns {{delimiter: string, lines: {cells: string[], number: number}[]}} the lines that
 *   are not blank, with their numbers in the text
 * @throws {Problem} a quote is not closed
 */
export function parse(text) {
  const first = text.split("\n").find((line) => line.trim()) ?? "";
  const separator = SEPARATOR.exec(first);
  const delimiter = separator ? separator[1] : sniff(first.replace(/\r$/, ""));
  const lines = split(text, delimiter).filter(({ cells }) => cells.some((c) => c.trim()));
  return { delimiter, lines: separator ? lines.slice(1) : lines };
}

/** The delimiter that divides a line into most cells. Cells that are all numbers decide,
 * since a comma may also be part of a number. */
function sniff(line) {
  const cells = (delimiter) => {
    try {
      return split(line, delimiter)[0].cells;
    } catch {
      return [line];
    }
  };
  const divides = (delimiter) => cells(delimiter).length;
  const numbers = DELIMITERS.slice(1).find(
    (mark) => divides(mark) > 1 && cells(mark).every((cell) => isNumber(cell, mark)),
  );
  return numbers ?? DELIMITERS.reduce((a, b) => (divides(b) > divides(a) ? b : a));
}

/** A quoted cell may hold delimiters, line breaks, and "" for a quote. */
function split(text, delimiter) {
  const lines = [];
  let cells = [];
  let cell = "";
  let quoted = false; // within quotes
  let wasQuoted = false;
  let number = 1; // of the line
  let start = 1;
  const endCell = () => {
    cells.push(wasQuoted ? cell : cell.trim());
    cell = "";
    wasQuoted = false;
  };
  const endLine = () => {
    endCell();
    if (cells.length > 1 || cells[0]) lines.push({ cells, number: start });
    cells = [];
  };
  for (let at = 0; at < text.length; at++) {
    const character = text[at];
    if (character === "\n") number++;
    if (quoted) {
      if (character !== '"') cell += character;
      else if (text[at + 1] === '"') cell += text[at++];
      else quoted = false;
    } else if (character === '"' && !cell.trim()) {
      cell = "";
      quoted = wasQuoted = true;
    } else if (character === delimiter) endCell();
    else if (character === "\n") {
      endLine();
      start = number;
    } else if (!wasQuoted || character.trim()) cell += character;
  }
  if (quoted) throw new Problem(0, { title: `Line ${start}: a quote is not closed.` });
  endLine();
  return lines;
}

/** A cell as a number; NaN if it is missing, undefined if it is other text. */
export function toNumber(cell, delimiter) {
  const text = cell.trim();
  if (NUMBER.test(text)) return Number(text);
  if (delimiter !== "," && DECIMAL_COMMA.test(text)) return Number(text.replace(",", "."));
  return MISSING.includes(text.toLowerCase()) ? NaN : undefined;
}

/** Returns true for a number, and for a cell that says that one is missing. */
export const isNumber = (cell, delimiter) => toNumber(cell, delimiter) !== undefined;

/** Join cells to a line of CSV. */
export const csvLine = (cells) => cells.map(quote).join(",");

function quote(cell) {
  const text = String(cell ?? "");
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
