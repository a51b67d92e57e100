// The panel Text: the class of a sentence after each letter, and a label for each word.

import { ask, health } from "./api.js";
import { bars } from "./bars.js";
import { code } from "./code.js";
import { best, fill, find, make, percent } from "./dom.js";
import { paint } from "./palette.js";
import { Reading } from "./reading.js";
import { refusal } from "./refusal.js";

const SHOWN = 8; // classes
const CHOICES = 3; // labels of a word that are shown
const PAUSE = 120; // ms without a key, after which words are labelled
const EXAMPLES = [
  "turn on the kitchen light",
  "set a timer for ten minutes",
  "what is the temperature in the bedroom",
  "pause the music",
];

/** Returns true for a model that classifies letter by letter, and one that labels words. */
export const fits = (model) =>
  model.input === "characters" ? model.task === "classify" && model.streamable : model.input === "tokens" && model.task === "label";

export function start(models) {
  const letters = models.find((model) => model.input === "characters");
  const words = models.find((model) => model.input === "tokens");
  const field = find("text-field");
  find("text-classify").hidden = !letters;
  find("text-label").hidden = !words;
  const readers = [letters && classifier(letters), words && labeller(words)].filter(Boolean);
  const read = () => readers.forEach((reader) => reader(field.value));
  field.oninput = read;
  health.addEventListener("ready", read);
  fill(
    find("text-examples"),
    EXAMPLES.map((text) => make("button", { onclick: () => { field.value = text; read(); field.focus(); } }, text)),
  );
  read();
}

/** Returns a function that reads a text letter by letter. It goes on from the letters that are
 * the same as before; after a deletion from the state of what is left. */
function classifier(model) {
  const reading = new Reading(model);
  let known = []; // {letter, answer} of each letter so far
  let run = 0;

  return async function read(text) {
    const thisRun = ++run;
    const all = [...text];
    const same = all.findIndex((letter, at) => letter !== known[at]?.letter);
    known = known.slice(0, same < 0 ? all.length : same);
    refusal(find("text-classify-error"));
    show(all.length);
    try {
      for (const letter of all.slice(known.length)) {
        const answer = await reading.text(letter, known.at(-1)?.answer.state ?? null);
        if (thisRun !== run) return; // the text has changed meanwhile
        known.push({ letter, answer });
        show(all.length);
      }
    } catch (error) {
      if (thisRun === run) refusal(find("text-classify-error"), error, () => read(text));
    }
  };

  function show(length) {
    const places = known.map(({ answer }) => best(answer.probabilities));
    const last = known.at(-1)?.answer;
    const at = decided(places);
    bars(find("text-bars"), model.classes, last?.probabilities ?? null, SHOWN);
    const said = last
      ? `${last.label} (${percent(last.probability)}), decided at letter ${at} of ${places.length}`
      : "Type a command to a home, such as “turn on the light”.";
    fill(find("text-said"), said);
    fill(
      find("text-letters"),
      known.map(({ letter }, place) => {
        const title = `after “${letter}”: ${model.classes[places[place]]}`;
        const span = make("span", { class: place === at - 1 ? "turn" : null, title }, letter);
        span.style.borderColor = paint(places[place]);
        return span;
      }),
    );
    const whole = known.map(({ letter }) => letter).join("");
    if (known.length === length && length) code(find("text-code"), "classify", { model: model.name, texts: [whole] });
    else if (!length) fill(find("text-code"));
  }
}

/** The number of the letter from which on the class is the last one; 0 without letters. */
const decided = (places) => (places.length ? places.findLastIndex((place) => place !== places.at(-1)) + 2 : 0);

/** Returns a function that labels the words of a text, once it no longer changes. */
function labeller(model) {
  let timer;
  let run = 0;

  return function read(text) {
    const thisRun = ++run;
    clearTimeout(timer);
    if (!text.trim()) {
      fill(find("text-words"));
      return refusal(find("text-label-error"));
    }
    timer = setTimeout(async () => {
      try {
        const { predictions, classes } = await ask("label", { model: model.name, texts: [text] });
        const [{ tokens, probabilities }] = predictions;
        if (thisRun !== run) return;
        refusal(find("text-label-error"));
        fill(find("text-words"), tokens.map((token, at) => word(token, probabilities[at], classes)));
      } catch (error) {
        if (thisRun === run) refusal(find("text-label-error"), error, () => read(text));
      }
    }, PAUSE);
  };
}

/** A word, its most probable label, and the next ones when it is pointed at. */
export function word({ text, known }, probabilities, classes) {
  const places = probabilities.map((_, place) => place).sort((a, b) => probabilities[b] - probabilities[a]);
  const [place] = places;
  const choices = places.slice(0, CHOICES).map((at) => `${classes[at]} ${percent(probabilities[at])}`);
  const item = make(
    "li",
    { tabindex: "0", class: known ? "word" : "word new" },
    make("span", {}, text),
    make("small", {}, classes[place]),
    make(
      "span",
      { class: "choices" },
      known ? null : make("em", {}, "unknown word"),
      choices.map((choice) => make("span", {}, choice)),
    ),
  );
  item.style.setProperty("--tag", paint(place));
  item.style.setProperty("--sure", `${(100 * probabilities[place]).toFixed(0)}%`);
  return item;
}
