// A sequence that a model reads step by step: the public `WS /stream`. A browser can
// send no key with a WebSocket, and some proxies let none through: then each step is a
// request of its own, which goes on from the state token of the one before.

import { Problem, ask, away, base, key, look, state } from "./api.js";

export class Reading {
  #socket; // a promise of one that is open
  #token = null;
  #plain = false; // no WebSocket comes through

  constructor(model) {
    this.model = model;
  }

  /**
   * Read more steps.
   *
   * @param {number[][]} frames steps, each with the model's features
   * @param {boolean} first whether a new sequence begins with them
   * @returns what `/stream` answers: steps, label(s), probabilities
   * @throws {Problem} it was refused, or the service is not there
   */
  async step(frames, first) {
    if (key() || this.#plain) return this.#request(frames, first);
    this.#socket ??= this.#open();
    let socket;
    try {
      socket = await this.#socket;
    } catch {
      this.#socket = undefined;
      await look();
      if (state !== "ready") throw away();
      this.#plain = true;
      return this.#request(frames, first);
    }
    return new Promise((resolve, reject) => {
      socket.waiting.push({ resolve, reject });
      socket.send(JSON.stringify(first ? { state: null, frames } : { frames }));
    });
  }

  async close() {
    (await this.#socket)?.close();
  }

  async #request(frames, first) {
    const body = { model: this.model.name, sequences: [frames], return_state: true };
    body.states = [first ? null : this.#token];
    const [prediction] = (await ask(this.model.task, body)).predictions;
    this.#token = prediction.state;
    return prediction;
  }

  #open() {
    const url = new URL(`stream?model=${encodeURIComponent(this.model.name)}`, base);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new WebSocket(url);
    socket.waiting = []; // {resolve, reject} of each message under way, oldest first
    socket.onmessage = ({ data }) => {
      const told = JSON.parse(data);
      if ("end" in told) return; // it was idle, or the service stops: it closes
      const { resolve, reject } = socket.waiting.shift();
      if (told.error) reject(new Problem(told.error.status, told.error));
      else resolve(told);
    };
    return new Promise((resolve, reject) => {
      socket.onopen = () => resolve(socket);
      socket.onclose = () => {
        reject(); // nothing, if it was open
        this.#socket = undefined;
        for (const one of socket.waiting.splice(0)) one.reject(away());
      };
    });
  }
}
