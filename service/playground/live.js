// What the service does now, of its Prometheus figures.

import { ask } from "./api.js";
import { find } from "./dom.js";
import { plot } from "./plot.js";

const SECONDS = 2;
const KEPT = 90; // readings: three minutes
const CHARTS = {
  "live-requests": { title: "Requests a second", of: requests },
  "live-latency": { title: "Latency of answers, milliseconds", of: latency },
  "live-rows": { title: "Rows per tick: sequences in each engine call", of: rows },
  "live-padding": { title: "Wasted steps: padding, percent", of: padding },
};

let before; // the reading before
const x = [];
const kept = Object.fromEntries(Object.keys(CHARTS).map((id) => [id, []]));

/** Read and draw every few seconds, while it can be seen. */
export async function watch() {
  if (!find("models").hidden && document.visibilityState === "visible") {
    try {
      look(parse(await ask("metrics")));
      find("live-off").hidden = true;
    } catch (error) {
      before = undefined;
      find("live-off").hidden = error.status !== 404;
    }
  }
  setTimeout(watch, SECONDS * 1000);
}

function look(now) {
  now.at = performance.now() / 1000;
  const last = before;
  before = now;
  if (!last) return;
  x.push((x.at(-1) ?? 0) + SECONDS);
  if (x.length > KEPT) x.shift();
  for (const [id, { title, of }] of Object.entries(CHARTS)) {
    const values = kept[id];
    values.push(of((name, labels) => Math.max(0, sum(now, name, labels) - sum(last, name, labels)), now.at - last.at, now));
    if (values.length > KEPT) values.shift();
    const series = Object.keys(values.at(-1)).map((name) => ({
      name,
      values: values.map((value) => value[name]),
    }));
    plot(find(id), title, x, series, { unit: "seconds", range: above });
  }
}

const above = (_, least, most) => [0, Math.max(1, most * 1.1)];
const DURATION = "http_server_request_duration_seconds";

function requests(more, seconds) {
  const asked = (found) => more(`${DURATION}_count`, found) / seconds;
  return {
    answered: asked(({ method, status }) => method === "POST" && status < 400),
    refused: asked(({ status }) => status >= 400),
    "stream messages": more("unrolled_stream_message_seconds_count") / seconds,
  };
}

function latency(more, _, now) {
  const of = ({ method, status }) => method === "POST" && status < 400;
  const bounds = now
    .filter(({ name }) => name === `${DURATION}_bucket`)
    .map(({ labels }) => labels.le);
  const ordered = [...new Set(bounds)].sort((a, b) => edge(a) - edge(b));
  const counts = ordered.map((le) => more(`${DURATION}_bucket`, (found) => found.le === le && of(found)));
  return { median: quantile(0.5, ordered, counts), "99 of 100": quantile(0.99, ordered, counts) };
}

function rows(more) {
  const calls = more("unrolled_batch_rows_count");
  return { rows: calls ? more("unrolled_batch_rows_sum") / calls : null };
}

function padding(more) {
  const wasted = more("unrolled_steps_total", ({ kind }) => kind === "padding");
  const all = more("unrolled_steps_total");
  return { wasted: all ? (100 * wasted) / all : null };
}

const edge = (le) => (le === "+Inf" ? Infinity : Number(le));

/** Milliseconds below which a share of them was, within the bucket in a straight line. */
function quantile(share, bounds, counts) {
  const wanted = share * (counts.at(-1) ?? 0);
  if (!wanted) return null;
  const at = counts.findIndex((count) => count >= wanted);
  const [low, below] = at ? [edge(bounds[at - 1]), counts[at - 1]] : [0, 0];
  const high = Number.isFinite(edge(bounds[at])) ? edge(bounds[at]) : low;
  return 1000 * (low + ((high - low) * (wanted - below)) / (counts[at] - below || 1));
}

function sum(samples, name, fitting = () => true) {
  return samples
    .filter((one) => one.name === name && fitting(one.labels))
    .reduce((total, { value }) => total + value, 0);
}

/** Prometheus' text format: {name, labels, value} of each sample. */
export function parse(text) {
  return text
    .split("\n")
    .filter((line) => line && !line.startsWith("#"))
    .map((line) => {
      const [, name, inner = "", value] = line.match(/^([^{ ]+)(?:\{(.*)\})? ([^ ]+)/);
      const labels = [...inner.matchAll(/([a-z_]+)="((?:[^"\\]|\\.)*)"/g)];
      return {
        name,
        labels: Object.fromEntries(labels.map(([, key, given]) => [key, given])),
        value: Number(value),
      };
    });
}
