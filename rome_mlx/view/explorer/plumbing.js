// What the explorer's parts share: its state, elements, and jobs, whose events come as JSON lines.
"use strict";

const token = new URLSearchParams(location.search).get("token");
const at = (id) => document.getElementById(id);
const field = (form, name) => at(form).elements[name];

let model = null;  // what /state says
const on = new Set();  // ids of the edits that are on

/** An element with properties and children; texts are never read as HTML. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") element.className = value;
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

const draw = (tag, attributes = {}, text = "") => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
};

const number = (value, digits = 3) => value.toFixed(digits);
const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
const visible = (text) => text.replace(/\n/g, "\\n");

/** A token as a row's name: without the spaces around it, which say little. */
function tokenName(text) {
  const bare = visible(text.replace(/^ +| +$/g, "")) || "␣";
  return bare.length <= 18 ? bare : `${bare.slice(0, 17)}…`;
}

/** Likeliest next words with bars; the answer stands out. */
function words(some, answer) {
  return make("div", { class: "words" }, ...some.flatMap(([word, p]) => [
    make("span", { class: word === answer ? "word first" : "word" }, tokenName(word)),
    make("span", {}, number(p)), bar(p)]));
}

function bar(p) {
  const drawn = make("i");
  drawn.style.width = `${100 * p}%`;
  return drawn;
}

const address = (path) => `${path}?token=${encodeURIComponent(token)}`;

/** What came over the network, or why nothing did. */
async function reached(answer) {
  try {
    return await answer;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the explorer does not answer; start rome-mlx explore again");
  }
}

const request = (path, body, signal) => reached(fetch(address(path), {
  method: body ? "POST" : "GET", body: body && JSON.stringify(body), signal }));

/** The events of a job as they come. */
async function* events(path, body, signal) {
  const response = await request(path, body, signal);
  if (!response.ok) throw new Error(await response.text());
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reached(reader.read());
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const line of parts) yield JSON.parse(line);
  }
}

/** A form's line for progress and errors. */
function tell(form, text, { failed = false, share = null } = {}) {
  form.classList.toggle("failed", failed);
  form.querySelector(".status p").textContent = text;
  if (share !== null) form.querySelector("progress").value = share;
}

/** Run a form's job; what it does with each event is in `handlers`. A new run ends the last. */
async function run(form, body, handlers) {
  form.job?.abort();
  const job = form.job = new AbortController();
  const cancel = form.querySelector(".cancel");
  form.classList.add("busy");
  cancel.disabled = false;
  tell(form, "Waiting for the model …", { share: 0 });
  try {
    for await (const event of events(form.id, body, job.signal)) {
      if (form.job !== job) return;
      if (event.event === "error") throw new Error(event.message);
      handlers[event.event]?.(event);
    }
  } catch (error) {
    if (form.job !== job) return;
    const stopped = error.name === "AbortError";
    tell(form, stopped ? "Cancelled." : sentence(error.message), { failed: !stopped });
  }
  if (form.job === job) {
    form.classList.remove("busy");
    cancel.disabled = true;
  }
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1)
  + (/[.!?]$/.test(text) ? "" : ".");
