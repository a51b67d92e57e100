// A sequence that a model reads step by step: the public `WS /stream`. A browser can
// send no key with a WebSocket, and some proxies let none through: then each step is a
// request of its own, which goes on from the state token of the one before.

import { Problem, ask, away, base, key, look, state } from "./api.js";

const TOO_LARGE = 1009; // RFC 6455, 7.4.1

export class Reading {
  #socket; // a promise of one that is open
  #token = null;
  #turn = {}; // the sequence that is read: an older one's answer may come late
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
    if (!first && !this.#socket) throw away(); // what was read so far is lost
    this.#socket ??= this.#open();
    let socket;
    try {
      socket = await this.#socket;
    } catch {
      this.#socket = undefined;
      await look();
      if (state !== "ready") throw away();
      this.#plain = true;
      return this.#request(frames, true);
    }
    return new Promise((resolve, reject) => {
      socket.waiting.push({ resolve, reject });
      socket.send(JSON.stringify(first ? { state: null, frames } : { frames }));
    });
  }

  async close() {
    const socket = await this.#socket?.catch(() => undefined);
    socket?.close();
  }

  async #request(frames, first) {
    if (first) this.#turn = {};
    const turn = this.#turn;
    const body = { model: this.model.name, sequences: [frames], return_state: true };
    body.states = [first ? null : this.#token];
    const [prediction] = (await this.#patiently(body)).predictions;
    if (turn === this.#turn) this.#token = prediction.state;
    return prediction;
  }

  /** The answer; where the service allows so many requests only, in its time. */
  async #patiently(body) {
    for (;;) {
      try {
        return await ask(this.model.task, body);
      } catch (error) {
        if (error.status !== 429) throw error;
        const seconds = error.told.retry_after ?? 1;
        await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
      }
    }
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
      socket.onclose = ({ code } = {}) => {
        reject(); // nothing, if it was open
        if (code === TOO_LARGE) this.#plain = true;
        this.#socket = undefined;
        for (const one of socket.waiting.splice(0)) one.reject(away());
      };
    });
  }
}
