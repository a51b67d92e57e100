// Shows a problem response to a person.

import { Problem, setKey } from "./api.js";
import { fill, make } from "./dom.js";

/**
 * Show an error, or hide the box if there is none.
 *
 * @param {Error?} error
 * @param {() => void} again called once a key was entered
 */
export function refusal(box, error, again) {
  box.hidden = !error;
  if (!error) return fill(box);
  if (!(error instanceof Problem)) {
    console.error(error);
    return fill(box, make("strong", {}, error.message));
  }
  const { title, detail, errors = [], error_count, retry_after, request_id } = error.problem;
  const more = (error_count ?? 0) - errors.length;
  return fill(
    box,
    make("strong", {}, title ?? "The request was refused"),
    detail ? make("p", {}, detail) : null,
    errors.length
      ? make(
          "ul",
          {},
          grouped(errors).map(({ first, last, message }) =>
            make(
              "li",
              {},
              make("code", {}, first),
              last === first ? null : [" to ", make("code", {}, last)],
              ` ${message}`,
            ),
          ),
          more > 0 ? make("li", {}, `and ${more} more`) : null,
        )
      : null,
    retry_after ? make("p", {}, `Try again in ${retry_after} s.`) : null,
    error.status === 401 ? keyForm(again) : null,
    request_id
      ? make("p", { class: "quiet" }, `Status ${error.status}. Request ID in the log: ${request_id}`)
      : null,
  );
}

function keyForm(again) {
  const input = make("input", { type: "password", autocomplete: "off", id: "key" });
  const submit = (event) => {
    event.preventDefault();
    setKey(input.value);
    again();
  };
  return make(
    "form",
    { onsubmit: submit, class: "buttons" },
    make("label", { for: "key" }, "API key, kept until this tab is closed"),
    input,
    make("button", {}, "Use key"),
  );
}

/** Errors in a row with the same message, as one: {first, last, message} with their paths. */
function grouped(errors) {
  const groups = [];
  for (const { path, message } of errors) {
    if (groups.at(-1)?.message === message) groups.at(-1).last = path;
    else groups.push({ first: path, last: path, message });
  }
  return groups;
}
