// Reads texts, for models that read words or characters: a column of a table, or a text a line.

import { Mismatch, SPECIAL, SPLIT, list } from "./columns.js";
import { Problem } from "../api.js";

const WORD = /\p{L}{2}/u;
const SENTENCE = /\p{L}\S*\s+\S*\p{L}/u; // two words

/** Returns true for a model that reads text. */
export const readsText = ({ input }) => input === "characters" || input === "tokens";

/**
 * Fit an input to a model that reads text.
 *
 * @param {object} input of `read`: a table, {sequences}, or {lines} that are no table
 * @returns see `fit`: `frames` are the letters of a text
 * @throws {Mismatch} the input holds no texts
 */
export function fitTexts(input, model) {
  const { header, rows, sequences, lines } = input;
  if (sequences) {
    const other = sequences.find(({ text }) => typeof text !== "string");
    if (other) throw new Mismatch(`${other.name} is not a text; ${model.name} reads text.`);
    return { sequences: sequences.map(spelled), unused: [], names: {} };
  }
  const places = header ? columnsOf(header, rows, model) : null;
  if (!places) {
    if (!areTexts(lines, header)) {
      const columns = header ? ` The columns are: ${list(header)}.` : "";
      throw new Mismatch(
        `The input has no column of texts; ${model.name} reads text.`,
        `Name the column “${wanted(model)}”.${columns}`,
      );
    }
    const each = lines.map((text, at) => ({ name: `text ${at + 1}`, id: String(at + 1), text }));
    return { sequences: each.map(spelled), unused: [], names: {} };
  }
  const { text, label, sequence } = places;
  const all = rows.map(({ cells }, at) => {
    const id = sequence < 0 ? String(at + 1) : String(cells[sequence]);
    const known = label < 0 || cells[label] === "" ? undefined : String(cells[label]);
    return spelled({ name: sequence < 0 ? `text ${id}` : id, id, text: cells[text], label: known });
  });
  const empty = rows.find(({ cells }) => !String(cells[text]).trim());
  if (empty) {
    const title = `Line ${empty.number}: the text is empty (column “${header[text]}”).`;
    throw new Problem(0, { title });
  }
  const used = [text, label, sequence];
  const unused = header.filter((name, at) => !used.includes(at) && name !== SPLIT);
  return { sequences: all, unused, names: { sequence: header[sequence] } };
}

const spelled = ({ text, ...sequence }) => ({ ...sequence, frames: [...String(text)] });

const wanted = ({ training }) => training?.settings?.data?.text ?? "text";

/** The places of the texts, labels and ids in a table; null if none of its columns has texts. */
function columnsOf(header, rows, model) {
  const place = (...names) => header.findIndex((name) => names.includes(name));
  const { label_column: label } = model.training?.settings?.data ?? {};
  const others = { label: place(label ?? "label", "label"), sequence: place("sequence", "id") };
  const named = place(wanted(model));
  if (named >= 0) return { text: named, ...others };
  const usual = place("text");
  if (usual >= 0) return { text: usual, ...others };
  const found = header.filter((name, at) => {
    const cells = rows.filter(({ cells }) => SENTENCE.test(cells[at]));
    const special = [...SPECIAL, SPLIT, label].includes(name);
    return !special && 2 * cells.length > rows.length;
  });
  if (found.length > 1) {
    throw new Problem(0, {
      title: `Several columns hold texts: ${list(found)}.`,
      detail: `Name the one that ${model.name} shall read “${wanted(model)}”.`,
    });
  }
  // A single line of words is a text, not the name of a column.
  if (!found.length || (header.length === 1 && SENTENCE.test(header[0]))) return null;
  return { text: header.indexOf(found[0]), ...others };
}

/** Returns true if most lines of an input that is no table, or has one column, are words. */
const areTexts = (lines, header) =>
  lines && !(header?.length > 1) && 2 * lines.filter((line) => WORD.test(line)).length > lines.length;
