// The `curl` command and the Python code that get the same answer.

import { base, key } from "./api.js";
import { DIRECTIONS, fill, make } from "./dom.js";

const SHORT = 300; // longest body, in characters, that is shown inline

/**
 * Show the code that gets an answer.
 *
 * @param {string} path such as "classify"
 * @param {{model: string, sequences: number[][][]}} body
 * @param {boolean} stream also show the code that streams it step by step
 */
export function code(box, path, body, stream = false) {
  const escaped = (mark) => `\\u${mark.charCodeAt(0).toString(16)}`;
  const text = JSON.stringify(body).replace(DIRECTIONS, escaped);
  const blob = new Blob([text], { type: "application/json" });
  const open = box.querySelector("details")?.open;
  URL.revokeObjectURL(box.querySelector("a")?.href);
  fill(
    box,
    make(
      "details",
      open ? { open: "" } : {},
      make("summary", {}, "Show the code"),
      make(
        "p",
        {},
        make("a", { href: URL.createObjectURL(blob), download: "request.json" }, "request.json"),
        ` is the body of this request (${text.length.toLocaleString("en")} bytes).`,
      ),
      snippet("curl", curl(path, text)),
      snippet("Python", python(path, body)),
      stream ? snippet("Python, step by step", streamed(body.model)) : null,
    ),
  );
}

function snippet(name, text) {
  const copy = async ({ target }) => {
    try {
      await navigator.clipboard.writeText(text); // browsers have no clipboard without HTTPS
      target.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(target.closest("figure").querySelector("pre"));
    }
  };
  return make(
    "figure",
    {},
    make("figcaption", {}, name, make("button", { onclick: copy, type: "button" }, "Copy")),
    make("pre", { tabindex: "0" }, make("code", {}, text)),
  );
}

function curl(path, text) {
  const data = text.length > SHORT ? "@request.json" : `'${text.replaceAll("'", "'\\''")}'`;
  const header = key() ? ' -H "X-API-Key: $UNROLLED_API_KEY"' : "";
  return `curl -s${header} ${base}${path} -d ${data}`;
}

const head = (using, input = "sequences") => `\
import json
${key() ? "import os\n" : ""}from pathlib import Path

from service.client import Client

${input} = json.loads(Path("request.json").read_text())["${input}"]
${key() ? 'key = {"X-API-Key": os.environ["UNROLLED_API_KEY"]}\n' : ""}${using}`;

const client = () => `Client("${base.href.replace(/\/$/, "")}"${key() ? ", headers=key" : ""})`;

const python = (path, { model, ...inputs }) => {
  const [input] = Object.keys(inputs);
  const call = `\
with ${client()} as client:
    answer = client.${path}(${input}, model=${JSON.stringify(model)})
for prediction in answer.predictions:
    print(prediction.label${path === "label" ? "s" : ", prediction.probability"})
`;
  return head(call, input);
};

const streamed = (model) =>
  head(`\
with ${client()} as client, client.stream(${JSON.stringify(model)}) as stream:
    for frame in sequences[0]:
        answer = stream.send([frame])
        print(answer.steps, answer.label or answer.labels)
`);
