// Sample sequences of the test sets; examples/samples.py writes samples.json.

import { away } from "./api.js";

const SIDE = 28; // of a digit
const LETTER = 128; // pixels

/** Lists of {label, frames} by data set. */
export async function load() {
  let all;
  try {
    all = await (await fetch(new URL("samples.json", import.meta.url))).json();
  } catch {
    throw away();
  }
  const { digits, words, vowels } = all;
  return {
    digits: digits.map(({ label, pixels }) => {
      return { label, frames: parted(bytes(pixels).map((pixel) => pixel / 255), SIDE) };
    }),
    words: words.map(({ label, letters }) => {
      const bits = bytes(letters).flatMap((byte) => [...byte.toString(2).padStart(8, "0")]);
      return { label, frames: parted(bits.map(Number), LETTER) };
    }),
    vowels,
  };
}

const bytes = (text) => Array.from(atob(text), (character) => character.charCodeAt(0));

function parted(values, size) {
  const count = values.length / size;
  return Array.from({ length: count }, (_, at) => values.slice(at * size, (at + 1) * size));
}
