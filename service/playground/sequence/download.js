// The answers to all sequences as a CSV file.

import { isLabelled, labelOf } from "./agreement.js";
import { csvLine } from "../input/csv.js";

/**
 * A row for each sequence or, if the model labels steps, for each step.
 *
 * @param {Answers} answers all of them
 * @returns {string} columns sequence, step (of steps), label (if the input has any),
 *   predicted, probability, and one for each class
 */
export function csv({ model, sequences, predictions, classes }) {
  const { task } = model;
  const labelled = sequences.some((sequence) => isLabelled(sequence, task));
  const labels = (value) => (labelled ? [value ?? ""] : []);
  const step = task === "label" ? ["step"] : [];
  const head = ["sequence", ...step, ...labels("label"), "predicted", "probability", ...classes];
  const lines = [csvLine(head)];
  sequences.forEach((sequence, place) => {
    const { label, probability, labels: predicted, probabilities } = predictions[place];
    if (task === "classify") {
      const known = labels(labelOf(sequence));
      lines.push(csvLine([sequence.name, ...known, label, probability, ...probabilities]));
      return;
    }
    probabilities.forEach((row, at) => {
      const shown = [sequence.name, sequence.steps?.[at] ?? at + 1];
      const known = labels(sequence.labels?.[at]);
      lines.push(csvLine([...shown, ...known, predicted[at], Math.max(...row), ...row]));
    });
  });
  return `${lines.join("\n")}\n`;
}
