// A bar for each class, in its colour. The likeliest is marked with a dot too.

import { best, fill, make, percent } from "./dom.js";
import { paint } from "./palette.js";

/**
 * @param {string[]} classes
 * @param {number[]?} probabilities of the classes; null: no bar, and no class is marked
 * @param {number} most number of classes shown: the likeliest
 */
export function bars(container, classes, probabilities, most = 12) {
  const known = probabilities ?? classes.map(() => 0);
  const top = probabilities ? best(known) : -1;
  const places = known
    .map((_, place) => place)
    .sort((a, b) => known[b] - known[a])
    .slice(0, most)
    .sort((a, b) => a - b);
  if (container.children.length !== places.length) {
    fill(container, places.map(row));
  }
  places.forEach((place, at) => {
    const [name, track, share] = container.children[at].children;
    const [bar] = track.children;
    container.children[at].classList.toggle("best", place === top);
    fill(name, `${place === top ? "● " : ""}${classes[place]}`);
    name.title = classes[place];
    bar.style.width = `${100 * known[place]}%`;
    bar.style.backgroundColor = paint(place);
    share.textContent = probabilities ? percent(known[place]) : "–";
  });
}

function row() {
  return make(
    "li",
    {},
    make("span", { class: "name" }),
    make("span", { class: "track" }, make("span", { class: "bar" })),
    make("span", { class: "share" }),
  );
}
