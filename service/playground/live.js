// Live charts of the service's Prometheus metrics.

import { ask } from "./api.js";
import { find } from "./dom.js";
import { plot } from "./plot.js";

const SECONDS = 2;
const KEPT = 90; // scrapes: three minutes
const CHARTS = {
  "live-requests": { title: "Requests per second", of: requests },
  "live-latency": { title: "Latency of successful requests, milliseconds", of: latency },
  "live-rows": { title: "Batch size: sequences per engine call", of: batchSize },
  "live-padding": { title: "Padding, percent of computed steps", of: padding },
};

let previous; // scrape
const x = [];
const kept = Object.fromEntries(Object.keys(CHARTS).map((id) => [id, []]));

/** Scrape and draw every few seconds, while the panel is visible. */
export async function watch() {
  if (!find("models").hidden && document.visibilityState === "visible") {
    try {
      update(parse(await ask("metrics")));
      find("live-off").hidden = true;
    } catch (error) {
      previous = undefined;
      find("live-off").hidden = error.status !== 404;
    }
  }
  setTimeout(watch, SECONDS * 1000);
}

function update(now) {
  now.at = performance.now() / 1000;
  const last = previous;
  previous = now;
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
  const rate = (filter) => more(`${DURATION}_count`, filter) / seconds;
  return {
    successful: rate(({ method, status }) => method === "POST" && status < 400),
    failed: rate(({ status }) => status >= 400),
    "stream messages": more("unrolled_stream_message_seconds_count") / seconds,
  };
}

function latency(more, _, now) {
  const successful = ({ method, status }) => method === "POST" && status < 400;
  const bounds = now
    .filter(({ name }) => name === `${DURATION}_bucket`)
    .map(({ labels }) => labels.le);
  const ordered = [...new Set(bounds)].sort((a, b) => edge(a) - edge(b));
  const counts = ordered.map((le) => more(`${DURATION}_bucket`, (labels) => labels.le === le && successful(labels)));
  return { median: quantile(0.5, ordered, counts), "99th percentile": quantile(0.99, ordered, counts) };
}

function batchSize(more) {
  const calls = more("unrolled_batch_rows_count");
  return { "batch size": calls ? more("unrolled_batch_rows_sum") / calls : null };
}

function padding(more) {
  const padded = more("unrolled_steps_total", ({ kind }) => kind === "padding");
  const all = more("unrolled_steps_total");
  return { padding: all ? (100 * padded) / all : null };
}

const edge = (le) => (le === "+Inf" ? Infinity : Number(le));

/** A quantile in milliseconds, interpolated linearly within its bucket. */
function quantile(share, bounds, counts) {
  const rank = share * (counts.at(-1) ?? 0);
  if (!rank) return null;
  const at = counts.findIndex((count) => count >= rank);
  const [low, below] = at ? [edge(bounds[at - 1]), counts[at - 1]] : [0, 0];
  const high = Number.isFinite(edge(bounds[at])) ? edge(bounds[at]) : low;
  return 1000 * (low + ((high - low) * (rank - below)) / (counts[at] - below || 1));
}

function sum(samples, name, filter = () => true) {
  return samples
    .filter((sample) => sample.name === name && filter(sample.labels))
    .reduce((total, { value }) => total + value, 0);
}

/** Parse Prometheus' text format into samples {name, labels, value}. */
export function parse(text) {
  return text
    .split("\n")
    .filter((line) => line && !line.startsWith("#"))
    .map((line) => {
      const [, name, inner = "", value] = line.match(/^([^{ ]+)(?:\{(.*)\})? ([^ ]+)/);
      const labels = [...inner.matchAll(/([a-z_]+)="((?:[^"\\]|\\.)*)"/g)];
      return {
        name,
        labels: Object.fromEntries(labels.map(([, key, text]) => [key, text])),
        value: Number(value),
      };
    });
}
