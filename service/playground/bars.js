// A bar for each class. The likeliest is marked with a dot, not by colour alone.

import { best, fill, make, percent } from "./dom.js";

/**
 * @param {string[]} classes
 * @param {number[]} probabilities of the classes
 * @param {number} most number of classes shown: the likeliest
 */
export function bars(container, classes, probabilities, most = 12) {
  const top = best(probabilities);
  const places = probabilities
    .map((_, place) => place)
    .sort((a, b) => probabilities[b] - probabilities[a])
    .slice(0, most)
    .sort((a, b) => a - b);
  if (container.children.length !== places.length) {
    fill(container, places.map(row));
  }
  places.forEach((place, at) => {
    const [name, track, share] = container.children[at].children;
    const [bar] = track.children;
    container.children[at].classList.toggle("best", place === top);
    name.textContent = `${place === top ? "● " : ""}${classes[place]}`;
    bar.style.width = `${100 * probabilities[place]}%`;
    share.textContent = percent(probabilities[place]);
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
