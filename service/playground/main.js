// The page: tabs, the status of the service, and the start of each panel.

import { ask, health, poll, state } from "./api.js";
import * as digit from "./drawing/digit.js";
import { find } from "./dom.js";
import * as live from "./live.js";
import * as models from "./models.js";
import { refusal } from "./refusal.js";
import * as samples from "./samples.js";
import * as text from "./text.js";
import * as sequence from "./sequence/panel.js";
import * as word from "./drawing/word.js";

const tabs = [...document.querySelectorAll("[role=tab]")];
let started = false;
let starting = false;

function choose(id, focus) {
  for (const tab of tabs) {
    const chosen = tab.getAttribute("aria-controls") === id;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    find(tab.getAttribute("aria-controls")).hidden = !chosen;
    if (chosen && focus) tab.focus();
  }
  history.replaceState(null, "", `#${id}`);
  if (started && id === "models") models.show();
}

tabs.forEach((tab, at) => {
  tab.onclick = () => choose(tab.getAttribute("aria-controls"));
  tab.onkeydown = ({ key: pressed }) => {
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[pressed];
    if (to == null) return;
    const next = tabs[(to + tabs.length) % tabs.length];
    choose(next.getAttribute("aria-controls"), true);
  };
});

function showStatus() {
  const words = {
    ready: "ready",
    starting: "starting: loading the models",
    away: "not reachable; retrying",
  };
  find("status").textContent = `The service is ${words[state]}`;
  find("status").dataset.state = state;
}

for (const kind of ["ready", "starting", "away"]) health.addEventListener(kind, showStatus);
health.addEventListener("ready", start);

/** Start the panels once the models are known. */
async function start() {
  if (started || starting) return;
  starting = true;
  refusal(find("error"));
  try {
    const [{ models: all, limits }, known] = await Promise.all([ask("models"), samples.load()]);
    started = true;
    panel("digit", all.find(digit.fits), (model) => digit.start(model, known.digits));
    const readers = all.filter(word.fits);
    panel("word", readers[0], () => word.start(readers, known.words));
    const ofText = all.filter(text.fits);
    panel("text", ofText[0], () => text.start(ofText));
    panel("sequence", all[0], () => sequence.start(all, Object.values(known).flat(), limits));
    live.watch();
    if (!find("models").hidden) models.show();
  } catch (error) {
    refusal(find("error"), error, start);
  } finally {
    starting = false;
  }
}

/** Start a panel if there is a model for it; otherwise the panel says that there is none. */
function panel(id, model, begin) {
  find(id).classList.toggle("without", !model);
  if (model) begin(model);
}

const linked = location.hash.slice(1);
choose(tabs.some((tab) => tab.getAttribute("aria-controls") === linked) ? linked : "digit");
poll();
