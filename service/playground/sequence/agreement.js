// Compares answers with the labels that the input has.

/** The label of a sequence: its own, or that of all its steps; undefined if there is none. */
export function labelOf({ label, labels }) {
  if (label != null) return label;
  const all = new Set(labels);
  return all.size === 1 && !all.has("") ? labels[0] : undefined;
}

/** Returns true if a sequence has labels for a task. */
export const isLabelled = (sequence, task) =>
  task === "classify" ? labelOf(sequence) != null : Boolean(sequence.labels?.some(Boolean));

/**
 * Compare one answer.
 *
 * @returns {{count: number, right: number, wrong: number[]}} predictions that have a label;
 *   `wrong`: the places of those that differ (of steps, or 0 for a sequence)
 */
export function compare(sequence, prediction, task) {
  const pairs =
    task === "classify"
      ? [[labelOf(sequence), prediction.label]]
      : prediction.labels.map((label, at) => [sequence.labels?.[at], label]);
  const known = pairs.filter(([label]) => label);
  const wrong = pairs.flatMap(([label, predicted], at) => {
    return label && label !== predicted ? [at] : [];
  });
  return { count: known.length, right: known.length - wrong.length, wrong };
}

/**
 * Compare all answers that have arrived.
 *
 * @param {Answers} answers
 * @returns {{count: number, right: number, wrong: number[], unknown: string[]}} `wrong`: the
 *   places of sequences with a wrong answer; `unknown`: labels that the model does not have
 */
export function agreement({ sequences, predictions, model, classes = [] }) {
  const sum = { count: 0, right: 0, wrong: [] };
  const unknown = new Set();
  sequences.forEach((sequence, place) => {
    const prediction = predictions[place];
    if (!prediction) return;
    const { count, right } = compare(sequence, prediction, model.task);
    sum.count += count;
    sum.right += right;
    if (right < count) sum.wrong.push(place);
    const labels = model.task === "classify" ? [labelOf(sequence)] : (sequence.labels ?? []);
    for (const label of labels) if (label && !classes.includes(label)) unknown.add(label);
  });
  return { ...sum, unknown: [...unknown] };
}

/** A percentage with one decimal; 100 only if all are right. */
export function share(right, count) {
  const percent = (100 * right) / count;
  if (right < count && percent >= 99.95) return "> 99.9 %";
  if (right && percent < 0.05) return "< 0.1 %";
  return `${Number(percent.toFixed(1))} %`;
}
