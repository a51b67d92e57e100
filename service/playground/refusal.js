// What the service refused, as a person wants to read it.

import { Problem, setKey } from "./api.js";
import { fill, make } from "./dom.js";

/**
 * Show why something failed, or nothing where nothing did.
 *
 * @param {Error?} error
 * @param {() => void} again what to do once a key was given
 */
export function refusal(box, error, again) {
  box.hidden = !error;
  if (!error) return fill(box);
  if (!(error instanceof Problem)) {
    console.error(error);
    return fill(box, make("strong", {}, error.message));
  }
  const { title, detail, errors = [], error_count, retry_after, request_id } = error.told;
  const more = (error_count ?? 0) - errors.length;
  return fill(
    box,
    make("strong", {}, title ?? "The service refused"),
    detail ? make("p", {}, detail) : null,
    errors.length
      ? make(
          "ul",
          {},
          errors.map(({ path, message }) => make("li", {}, make("code", {}, path), ` ${message}`)),
          more > 0 ? make("li", {}, `and ${more} more`) : null,
        )
      : null,
    retry_after ? make("p", {}, `Try again in ${retry_after} s.`) : null,
    error.status === 401 ? keyForm(again) : null,
    request_id
      ? make("p", { class: "quiet" }, `Status ${error.status}. In the service's log: ${request_id}`)
      : null,
  );
}

function keyForm(again) {
  const input = make("input", { type: "password", autocomplete: "off", id: "key" });
  const given = (event) => {
    event.preventDefault();
    setKey(input.value);
    again();
  };
  return make(
    "form",
    { onsubmit: given, class: "buttons" },
    make("label", { for: "key" }, "Key, kept until this tab is closed"),
    input,
    make("button", {}, "Use it"),
  );
}
