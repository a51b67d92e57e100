// The answers to all sequences as a CSV file, as `unrolled predict` writes it.

import { isLabelled, labelOf } from "./agreement.js";
import { csvLine } from "../input/csv.js";

const PREFIX = "probability_"; // of a class's column: a class may have any name, even "label"
// Spreadsheets run a cell that begins so as a formula, if it calls something.
const FORMULA = /^\s*[=+\-@＋－＝＠][^]*[(|!]/;

/**
 * A row for each sequence or, if the model labels steps, for each step.
 *
 * @param {Answers} answers all of them
 * @param {{sequence: string, step: string}} names of the first columns, as in the input
 * @returns {string} columns of ids, steps (of steps), `label` (predicted), `probability`,
 *   `true_label` (if the input has any labels), and one for each class
 */
export function csv({ model, sequences, predictions, classes }, names) {
  const { task } = model;
  const labelled = sequences.some((sequence) => isLabelled(sequence, task));
  const known = (label) => (labelled ? [label ?? ""] : []);
  const rest = ["label", "probability", ...known("true_label"), ...classes.map((c) => PREFIX + c)];
  const step = task === "label" ? [free(names.step, "step", rest)] : [];
  const id = free(names.sequence, "sequence", [...step, ...rest]);
  const lines = [line([id, ...step, ...rest])];
  sequences.forEach((sequence, place) => {
    const { label, probability, labels, probabilities } = predictions[place];
    const name = sequence.id ?? sequence.name;
    if (task === "classify") {
      const truth = known(labelOf(sequence));
      lines.push(line([name, label, probability, ...truth, ...probabilities]));
      return;
    }
    probabilities.forEach((row, at) => {
      const truth = known(sequence.labels?.[at]);
      const shown = [name, sequence.steps?.[at] ?? at + 1, labels[at], Math.max(...row)];
      lines.push(line([...shown, ...truth, ...row]));
    });
  });
  return `${lines.join("\n")}\n`;
}

/** The name of a column, or another if there is such a column already. */
const free = (name, usual, taken) =>
  [name, usual, "id", "time"].find((other) => other && !taken.includes(other));

const line = (cells) =>
  csvLine(cells.map((cell) => (FORMULA.test(cell) && typeof cell === "string" ? `'${cell}` : cell)));
