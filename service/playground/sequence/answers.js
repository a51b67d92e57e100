// The answers to all sequences of an input, in requests that the service's limits allow.

import { Problem, askPatiently } from "../api.js";

const FIELDS = { records: "records", tokens: "texts", characters: "texts" }; // of other inputs
const SEQUENCES = 64; // in a request, if the service names no limit
const STEPS = 20_000; // in a request of several sequences: each is answered within a second or so
const NUMBERS = 500_000; // in a request and in its answer
const BYTES_PER_NUMBER = 24; // at most, as JSON

/** The body of a request, with the frames of sequences (of a text: its letters). */
export function bodyOf({ name, input }, sequences) {
  const field = FIELDS[input] ?? "sequences";
  const items = field === "texts" ? sequences.map((letters) => letters.join("")) : sequences;
  return { model: name, [field]: items };
}

export class Answers {
  /** @type {object[]} by sequence; missing until they arrive */
  predictions = [];
  /** @type {string[] | undefined} of the model, in the order of the probabilities */
  classes;

  /**
   * @param {object} model of `GET /models`
   * @param {{name: string, frames: number[][]}[]} sequences
   * @param {{sequences?: number, steps?: number, numbers?: number, body_bytes?: number}} limits
   *   of a request
   */
  constructor(model, sequences, limits = {}) {
    Object.assign(this, { model, sequences, limits });
    this.count = 0;
  }

  get complete() {
    return this.count === this.sequences.length;
  }

  /** The prediction of one sequence. */
  async one(place) {
    if (!this.predictions[place]) await this.#request([place]);
    return this.predictions[place];
  }

  /**
   * Ask for all that are missing, one request after another.
   *
   * @param {() => boolean} more called after each request; false stops
   */
  async all(more) {
    for (const places of this.#requests()) {
      await this.#request(places);
      if (!more()) return;
    }
  }

  /** Lists of places whose sequences fit in a request each. */
  #requests() {
    const { sequences: most = SEQUENCES, numbers = NUMBERS, body_bytes: bytes } = this.limits;
    const room = Math.min(numbers, NUMBERS, (bytes ?? Infinity) / BYTES_PER_NUMBER);
    const width = Math.max(this.model.feature_count, this.model.classes.length);
    const steps = Math.min(STEPS, room / width);
    const requests = [];
    let left = 0;
    this.sequences.forEach(({ frames }, place) => {
      if (this.predictions[place]) return;
      if (frames.length > left || requests.at(-1).length >= most) {
        requests.push([]);
        left = steps;
      }
      requests.at(-1).push(place);
      left -= frames.length;
    });
    return requests;
  }

  async #request(places) {
    const body = bodyOf(this.model, places.map((place) => this.sequences[place].frames));
    this.#check(places);
    try {
      const answer = await askPatiently(this.model.task, body);
      this.classes = answer.classes;
      answer.predictions.forEach((prediction, at) => {
        if (!this.predictions[places[at]]) this.count++;
        this.predictions[places[at]] = prediction;
      });
    } catch (error) {
      throw this.#named(error, places);
    }
  }

  #check(places) {
    const { steps: most = Infinity } = this.limits;
    const place = places.find((at) => this.sequences[at].frames.length > most);
    if (place == null) return;
    const { name, frames } = this.sequences[place];
    const title = `“${name}” has ${frames.length} steps; the service takes at most ${most}.`;
    throw new Problem(0, { title });
  }

  /** An error whose paths have the sequences' names in place of their places in the request. */
  #named(error, places) {
    if (!error.problem?.errors) return error;
    const errors = error.problem.errors.map(({ path, message }) => ({
      path: path.replace(/^[a-z]+\[(\d+)\]/, (_, at) => this.sequences[places[at]].name),
      message,
    }));
    return new Problem(error.status, { ...error.problem, errors });
  }
}
