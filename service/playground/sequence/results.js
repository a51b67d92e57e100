// The table of all answers: choose a sequence, see which ones are wrong, download them.

import { agreement, compare, isLabelled, labelOf, share } from "./agreement.js";
import { count, list } from "../input/columns.js";
import { fill, find, make, percent } from "../dom.js";
import { csv } from "./download.js";
import { dashed, paint } from "../palette.js";
import { runs, span } from "../plot.js";

const ROWS = 500; // most sequences in the table

export class Results {
  #answers;
  #names;
  #place = 0;
  #wrong = [];
  #listed; // the answers in the table

  /** @param {(place: number) => void} choose called with the sequence to show */
  constructor(choose) {
    this.choose = choose;
    find("answers-wrong-only").onchange = () => this.#table();
    find("answers-next-wrong").onclick = () => {
      choose(this.#wrong.find((place) => place > this.#place) ?? this.#wrong[0]);
    };
    find("answers-download").onclick = ({ target }) => {
      URL.revokeObjectURL(target.href);
      target.href = URL.createObjectURL(new Blob([csv(this.#answers, this.#names)], { type: "text/csv" }));
    };
  }

  /**
   * Show the answers that have arrived.
   *
   * @param {Answers} answers
   * @param {string} file name of the download
   * @param {object} names of the input's columns, see `fit`
   */
  show(answers, file, names) {
    this.#answers = answers;
    this.#names = names;
    const { sequences, model, count: done } = answers;
    const labelled = sequences.some((sequence) => isLabelled(sequence, model.task));
    this.labelled = labelled;
    const { wrong, ...figures } = agreement(answers);
    this.#wrong = wrong;
    find("answers-progress").hidden = answers.complete;
    find("answers-progress").max = sequences.length;
    find("answers-progress").value = done;
    const sofar = `${done.toLocaleString("en")} of ${count(sequences.length, "sequence")} answered.`;
    fill(find("answers-said"), answers.complete ? this.#summary(figures) : sofar);
    find("answers-next-wrong").hidden = !wrong.length;
    find("answers-next-wrong").textContent = `Next wrong (${wrong.length.toLocaleString("en")})`;
    find("answers-only").hidden = !wrong.length;
    if (!wrong.length) find("answers-wrong-only").checked = false;
    find("answers-download").hidden = !answers.complete;
    find("answers-download").download = file;
    // While answers arrive the table stays, and with it the focus.
    if (answers.complete || this.#listed !== answers) this.#table();
  }

  /** Mark the sequence that is shown, and scroll the table to it. */
  mark(place) {
    this.#place = place;
    const table = find("answers-table");
    table.querySelector("[aria-current]")?.removeAttribute("aria-current");
    const row = table.querySelector(`[data-place="${place}"]`);
    row?.setAttribute("aria-current", "true");
    if (!row) return;
    const list = find("answers-list");
    const [inner, outer] = [row.getBoundingClientRect(), list.getBoundingClientRect()];
    if (inner.top < outer.top || inner.bottom > outer.bottom) {
      list.scrollTop += inner.top - outer.top - (outer.height - inner.height) / 2;
    }
  }

  #summary({ count: all, right, unknown }) {
    const { sequences, model } = this.#answers;
    if (!this.labelled) return `${count(sequences.length, "sequence")} answered.`;
    const unit = model.task === "classify" ? "sequence" : "step";
    const figures = `${right.toLocaleString("en")} of ${count(all, unit)}`;
    const agrees = `${share(right, all)} agree with the labels in the input: ${figures}.`;
    if (!unknown.length) return agrees;
    return `${agrees} ${model.name} has no class ${list(unknown.map((name) => `“${name}”`))}.`;
  }

  #table() {
    this.#listed = this.#answers;
    const { sequences, predictions, model } = this.#answers;
    find("answers-list").hidden = sequences.length < 2;
    const only = find("answers-wrong-only").checked;
    const places = only ? this.#wrong : sequences.map((_, place) => place);
    const heads = ["sequence", ...(this.labelled ? ["in the input"] : []), "predicted", ""];
    if (model.task === "label") heads.splice(1, 2, "steps", "predicted");
    const rows = places.slice(0, ROWS).map((place) => this.#row(place, predictions[place]));
    fill(
      find("answers-table"),
      make("thead", {}, make("tr", {}, heads.map((name) => make("th", { scope: "col" }, name)))),
      make("tbody", {}, rows),
    );
    find("answers-more").textContent =
      places.length > ROWS
        ? `The first ${ROWS} of ${places.length.toLocaleString("en")}; the download has all.`
        : "";
    this.mark(this.#place);
  }

  #row(place, prediction) {
    const { model } = this.#answers;
    const sequence = this.#answers.sequences[place];
    const choose = make("button", { onclick: () => this.choose(place) }, sequence.name);
    const head = make("th", { scope: "row" }, choose);
    const cells = model.task === "classify" ? this.#classified : this.#stepwise;
    const wrong = this.#wrong.includes(place);
    return make(
      "tr",
      { "data-place": place, class: wrong ? "wrong" : "" },
      head,
      cells.call(this, sequence, prediction),
    );
  }

  #classified(sequence, prediction) {
    const known = labelOf(sequence);
    const mark = { true: " ✓", false: " ✗" }[known == null ? "" : known === prediction?.label];
    return [
      this.labelled ? make("td", {}, known == null ? "–" : this.#named(known)) : null,
      make("td", {}, prediction ? [this.#named(prediction.label), mark] : "…"),
      make("td", { class: "share" }, prediction ? percent(prediction.probability) : ""),
    ];
  }

  #stepwise(sequence, prediction) {
    const found = [...new Set(prediction?.labels)];
    const cells = [make("td", { class: "share" }, prediction?.labels.length ?? "…")];
    cells.push(make("td", {}, prediction ? this.#strip(prediction.labels, found) : "…"));
    if (!prediction || !isLabelled(sequence, "label")) return [...cells, make("td", {}, "")];
    const { count: all, right } = compare(sequence, prediction, "label");
    const mark = right === all ? "✓" : "✗";
    return [...cells, make("td", { class: "share" }, `${share(right, all)} ${mark}`)];
  }

  /** The classes of the steps, as a narrow strip. */
  #strip(labels, found) {
    const parts = runs(labels).map(({ value, from, to }) => {
      const place = this.#answers.classes.indexOf(value);
      const part = make("span", { class: dashed(place), title: `${value}: ${span(from, to)}` });
      part.style.flexGrow = to - from + 1;
      part.style.backgroundColor = paint(place);
      return part;
    });
    return make("span", { class: "strip", role: "img", "aria-label": list(found) }, parts);
  }

  /** A class's name after a patch of its colour. */
  #named(name) {
    const place = (this.#answers.classes ?? []).indexOf(name);
    const patch = make("span", { class: "patch", "aria-hidden": "true" });
    if (place >= 0) patch.style.backgroundColor = paint(place);
    return [patch, name];
  }
}
