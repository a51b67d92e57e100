// A canvas to draw on with a mouse, a pen or a finger.

import { colour } from "../dom.js";

const WIDTH = 0.05; // of the line, as a fraction of the pad

/** Strokes on a canvas: lists of points [x, y], as fractions of its side. */
export class Pad {
  strokes = [];
  #canvas;
  #picture = null; // shown in place of strokes

  /** @param {() => void} onStroke called after each stroke */
  constructor(canvas, onStroke) {
    this.#canvas = canvas;
    let current = null;
    canvas.addEventListener("pointerdown", (event) => {
      if (!event.isPrimary || event.button) return;
      event.preventDefault();
      canvas.setPointerCapture(event.pointerId);
      canvas.focus({ preventScroll: true });
      if (this.#picture) this.clear();
      current = [this.#place(event)];
      this.strokes.push(current);
      this.draw();
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!current || !event.isPrimary) return;
      const all = event.getCoalescedEvents?.() ?? [];
      for (const moved of all.length ? all : [event]) current.push(this.#place(moved));
      this.draw();
    });
    const end = () => {
      if (current) onStroke();
      current = null;
    };
    canvas.addEventListener("pointerup", end);
    canvas.addEventListener("pointercancel", end);
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  get empty() {
    return this.strokes.length === 0;
  }

  clear() {
    this.strokes = [];
    this.#picture = null;
    this.draw();
  }

  /** Show rows of pixels (0 to 1) in place of strokes. */
  show(rows) {
    this.strokes = [];
    this.#picture = rows;
    this.draw();
  }

  draw() {
    const { clientWidth: side } = this.#canvas;
    const scale = devicePixelRatio || 1;
    this.#canvas.width = this.#canvas.height = side * scale;
    const pen = this.#canvas.getContext("2d");
    pen.scale(side * scale, side * scale);
    if (this.#picture) paint(pen, this.#picture, 1, 1);
    pen.strokeStyle = colour("ink");
    pen.lineWidth = WIDTH;
    pen.lineCap = pen.lineJoin = "round";
    for (const stroke of this.strokes) {
      pen.beginPath();
      pen.moveTo(...stroke[0]);
      for (const point of stroke) pen.lineTo(...point);
      pen.stroke();
    }
  }

  #place(event) {
    const { left, top, width, height } = this.#canvas.getBoundingClientRect();
    return [(event.clientX - left) / width, (event.clientY - top) / height];
  }
}

/** Paint rows of pixels (0 to 1) as squares, over a width and a height of a canvas. */
export function paint(pen, rows, width, height) {
  pen.fillStyle = colour("ink");
  const [wide, high] = [width / rows[0].length, height / rows.length];
  rows.forEach((row, y) => {
    row.forEach((ink, x) => {
      pen.globalAlpha = ink;
      if (ink) pen.fillRect(x * wide, y * high, wide, high);
    });
  });
  pen.globalAlpha = 1;
}

/** Set a canvas to rows of pixels (0 to 1). */
export function picture(canvas, rows) {
  canvas.width = rows[0].length;
  canvas.height = rows.length;
  paint(canvas.getContext("2d"), rows, canvas.width, canvas.height);
}
