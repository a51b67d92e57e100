// Streams a sequence step by step over `WS /stream`. A browser cannot send a key with a
// WebSocket, and some proxies block WebSockets: then each step is a request of its own,
// which continues from the state token of the previous one.

import { Problem, askPatiently, away, base, key, poll, state } from "./api.js";

const TOO_LARGE = 1009; // RFC 6455, 7.4.1

export class Reading {
  #socket; // a promise of an open WebSocket
  #token = null;
  #turn = {}; // identifies the sequence: an older one's answer may come late
  #plain = false; // WebSockets are blocked

  constructor(model) {
    this.model = model;
  }

  /**
   * Send more steps.
   *
   * @param {number[][]} frames steps, each with the model's features
   * @param {boolean} first true if a new sequence begins with them
   * @returns the answer of `/stream`: steps, label(s), probabilities
   * @throws {Problem} the request was refused, or the service cannot be reached
   */
  step(frames, first) {
    return this.#send({ frames }, first);
  }

  /**
   * Send text, character by character to the network, that follows a state.
   *
   * @param {string?} after the state token of the text before it; null: none is before it
   * @returns the answer, with `state`, the token after this text
   */
  text(text, after) {
    return this.#send({ text, return_state: true, state: after }, after === null, after);
  }

  async #send(message, first, after) {
    if (key() || this.#plain) return this.#request(message, first, after);
    if (!first && after === undefined && !this.#socket) throw away(); // the state is lost
    this.#socket ??= this.#open();
    let socket;
    try {
      socket = await this.#socket;
    } catch {
      this.#socket = undefined;
      await poll();
      if (state !== "ready") throw away();
      this.#plain = true;
      return this.#request(message, true, after);
    }
    return new Promise((resolve, reject) => {
      socket.waiting.push({ resolve, reject });
      socket.send(JSON.stringify(first ? { ...message, state: null } : message));
    });
  }

  async close() {
    const socket = await this.#socket?.catch(() => undefined);
    socket?.close();
  }

  async #request({ frames, text }, first, after = this.#token) {
    if (first) this.#turn = {};
    const turn = this.#turn;
    const input = frames ? { sequences: [frames] } : { texts: [text] };
    const body = { model: this.model.name, ...input, return_state: true };
    body.states = [first && frames ? null : after];
    const [prediction] = (await askPatiently(this.model.task, body)).predictions;
    if (turn === this.#turn) this.#token = prediction.state;
    return prediction;
  }

  #open() {
    const url = new URL(`stream?model=${encodeURIComponent(this.model.name)}`, base);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new WebSocket(url);
    socket.waiting = []; // {resolve, reject} of each unanswered message, oldest first
    socket.onmessage = ({ data }) => {
      const answer = JSON.parse(data);
      if ("end" in answer) return; // the stream was idle, or the service stops: it closes
      const { resolve, reject } = socket.waiting.shift();
      if (answer.error) reject(new Problem(answer.error.status, answer.error));
      else resolve(answer);
    };
    return new Promise((resolve, reject) => {
      socket.onopen = () => resolve(socket);
      socket.onclose = ({ code } = {}) => {
        reject(); // has no effect after onopen
        if (code === TOO_LARGE) this.#plain = true;
        this.#socket = undefined;
        for (const { reject: lose } of socket.waiting.splice(0)) lose(away());
      };
    });
  }
}
