// The explorer's page. Each of its forms starts a job, whose events come as JSON lines.
"use strict";

const token = new URLSearchParams(location.search).get("token");
const at = (id) => document.getElementById(id);
const field = (form, name) => at(form).elements[name];
const KINDS = {
  hidden: () => "one hidden state",
  mlp: (window) => `${window} MLPs around the layer`,
  attn: (window) => `${window} attentions around the layer`,
};

let model = null;  // what /state says
let map = null;  // the trace on the page
let shown = null;  // the cell that is read: {position, layer}, and whether it is held
const finished = new Map();  // exact maps by what was asked, so that kinds can be compared
const on = new Set();  // ids of the edits that are on

// ---- small things -------------------------------------------------------------------------

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

// ---- jobs ---------------------------------------------------------------------------------

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

// ---- the map ------------------------------------------------------------------------------

function startTrace() {
  const form = at("trace");
  const asked = { prompt: field("trace", "prompt").value,
    subject: field("trace", "subject").value, kind: field("trace", "kind").value };
  const key = JSON.stringify(asked);
  if (finished.has(key)) {
    form.job?.abort();
    showMap(finished.get(key));
    tell(form, "Exact: every cell was run.");
    return;
  }
  run(form, asked, {
    fact: (event) => {
      showMap({ ...event, key, scores: null, rows: {}, told: [] });
      tell(form, "Estimating all cells …");
    },
    estimate: (event) => {
      Object.assign(map, { scores: event.scores, told: event.told });
      paint();
      tell(form, "An estimate, rough where much changes at once, as in low layers; exact "
        + "rows follow …");
    },
    row: addRow,
    exact: (event) => {
      map.told = event.told;
      finished.set(key, map);
      paint();
      tell(form, "Exact: every cell was run.");
    },
  });
}

function addRow(event) {
  map.rows[event.position] = event;
  map.scores[event.position] = event.scores;
  paint();
  const done = Object.keys(map.rows).length;
  tell(at("trace"), `Exact rows: ${done} of ${map.tokens.length}`,
    { share: done / map.tokens.length });
}

function showMap(next) {
  const same = map && shown && map.tokens.join("\n") === next.tokens.join("\n");
  map = next;
  const [begin, end] = map.subject_range;
  shown = same ? shown : { position: end - 1, layer: model.choice.layer, held: false };
  at("fact").replaceChildren(...[
    [map.answer.trim() || "␣", "the model's answer"],
    [number(map.clean_prob), `P(${map.answer.trim()})`],
    [number(map.corrupted_prob), "with the subject hidden"],
    [map.tokens.slice(begin, end).map(tokenName).join(" · "), "the subject's tokens"],
  ].map(([value, name]) => make("div", {}, make("b", {}, value),
    make("span", { class: "soft small" }, name))));
  const restored = KINDS[map.kind](map.window);
  at("map-title").textContent = `P(${map.answer.trim()}) with ${restored} put back`;
  layOut();
  paint();
}

/** The map's grid: a row a token, a column a layer, and below the layers' numbers. */
function layOut() {
  const box = at("map"), last = map.tokens.length - 1, [begin, end] = map.subject_range;
  box.className = map.kind;
  box.style.gridTemplateColumns = `max-content repeat(${model.layers}, minmax(0, 1fr))`;
  box.replaceChildren();
  map.cells = map.tokens.map((text, position) => {
    const inside = begin <= position && position < end;
    box.append(make("span", { class: inside ? "token subject" : "token", title: visible(text) },
      tokenName(text) + (inside ? "*" : "")));
    return Array.from({ length: model.layers }, (_, layer) => {
      const edges = [position === 0 && "top", position === last && "bottom",
        layer === 0 && "left", layer === model.layers - 1 && "right"].filter(Boolean);
      const cell = make("span", { class: ["cell", ...edges].join(" ") });
      Object.assign(cell.dataset, { position, layer });
      box.append(cell);
      return cell;
    });
  });
  const every = model.layers <= 60 ? 5 : 10;
  box.append(make("span", { class: "token" }, "layer"), ...Array.from({ length: model.layers },
    (_, layer) => make("span", { class: "tick" }, layer % every ? "" : String(layer))));
  box.append(make("span", { class: "token" }, "to edit"), ...Array.from({ length: model.layers },
    () => make("span", { class: "mark" })));
  markLayer();
}

function markLayer() {
  const chosen = Number(field("edit", "layer").value);
  at("map").querySelectorAll(".mark").forEach((mark, layer) => {
    mark.textContent = layer === chosen ? "▲" : "";
  });
}

/** Colours from P with the subject hidden, empty, to the map's highest; and what is beside. */
function paint() {
  const low = map.corrupted_prob;
  const high = Math.max(low + 1e-9, ...(map.scores ?? []).flat());
  map.cells.forEach((row, position) => row.forEach((cell, layer) => {
    const part = map.scores ? (map.scores[position][layer] - low) / (high - low) : 0;
    cell.style.setProperty("--v", Math.min(1, Math.max(0, part)));
    cell.classList.toggle("exact", position in map.rows);
  }));
  at("scale").textContent = map.scores
    ? `Empty: ${number(low)}, as with the subject hidden. Full colour: ${number(high)}.` : "\u00a0";
  const told = finished.has(map.key) || !map.scores ? map.told
    : ["Decisive layer: named when the map is exact.", ...map.told];
  at("layers").replaceChildren(...told.map((text) => make("p", {}, text)));
  read();
}

// ---- reading a cell -----------------------------------------------------------------------

function read(cell = shown) {
  const { position, layer } = cell, row = map.rows[position];
  at("map").querySelectorAll(".at").forEach((one) => one.classList.remove("at", "held"));
  map.cells[position][layer].classList.add("at");
  map.cells[position][layer].classList.toggle("held", shown.held && cell === shown);
  at("take").disabled = !model.dense.includes(layer);
  at("take").textContent = `Edit at layer ${layer}`;
  at("take").layer = layer;
  const parts = [make("p", {}, `“${tokenName(map.tokens[position])}”, layer ${layer}`)];
  if (map.scores) parts.push(...reading(map.scores[position][layer], row, layer));
  if (row) {
    parts.push(make("p", { class: "soft small" }, "With this put back, the model says"),
      words(row.words[layer], map.answer));
  }
  at("cell").replaceChildren(...parts);
}

function reading(value, row, layer) {
  const total = map.clean_prob - map.corrupted_prob, effect = value - map.corrupted_prob;
  const share = total > 0 ? `${Math.round((100 * effect) / total)} % of what hiding it took away`
    : "hiding the subject took nothing away";
  const [low, high] = row ? row.intervals[layer] : [];
  return [make("p", { class: "value" }, `${row ? "" : "≈ "}${number(value)}`),
    make("p", { class: "small" }, row
      ? `95 % interval ${number(low)} to ${number(high)}, ${map.samples} noise samples`
      : "an estimate by gradients; the exact row is to come"),
    make("p", { class: "small" }, share)];
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

function cellAt(event) {
  const under = document.elementFromPoint(event.clientX, event.clientY)?.closest("#map .cell");
  return under && { position: Number(under.dataset.position), layer: Number(under.dataset.layer) };
}

function point(event) {
  const cell = map && cellAt(event);
  if (!cell || (event.type !== "click" && sameCell(cell, shown))) return;
  if (event.type === "click") shown = { ...cell, held: !(shown.held && sameCell(cell, shown)) };
  else if (shown.held) return;
  else shown = { ...cell, held: false };
  read();
}

const sameCell = (one, other) => one.position === other.position && one.layer === other.layer;

function moveByKey(event) {
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  if (!map) return;
  if (event.key === "Enter") shown = { ...shown, held: !shown.held };
  else if (event.key === "Escape") shown = { ...shown, held: false };
  else if (event.key in steps) {
    const [down, right] = steps[event.key];
    shown = { position: within(shown.position + down, map.tokens.length),
      layer: within(shown.layer + right, model.layers), held: shown.held };
  } else return;
  event.preventDefault();
  read();
}

const within = (value, length) => Math.min(length - 1, Math.max(0, value));

// ---- writing an edit ----------------------------------------------------------------------

function startEdit() {
  const form = at("edit"), losses = [];
  const [paraphrases, neighbors] = ["paraphrases", "neighbors"].map(
    (name) => lines(field("edit", name).value));
  let steps = 1;
  run(form, { prompt: field("trace", "prompt").value, subject: field("trace", "subject").value,
    target_new: field("edit", "target_new").value, layer: Number(field("edit", "layer").value),
    paraphrases, neighbors }, {
    begun: (event) => {
      steps = event.steps;
      at("written").hidden = false;
      at("checked").replaceChildren();
      at("checked").style.setProperty("--prompts", 1 + paraphrases.length + neighbors.length);
      at("losses").replaceChildren();
      tell(form, "Reading keys …");
    },
    moments: (event) => tell(form, `Counting C of this layer first, once for this model: ${
      timeLeft(event.left)}`, { share: event.share }),
    step: (event) => {
      losses.push(event);
      at("losses").replaceChildren(lossChart(losses, steps));
      tell(form, `Step ${event.step}: loss ${number(event.total)}, P of the new answer ${
        number(event.probability)}`, { share: losses.length / steps });
    },
    written: (event) => tell(form, `Measuring what changed … ${event.told ?? ""}`, { share: 1 }),
    verified: (event) => {
      model.edits = [...model.edits.filter((one) => one.id !== event.edit.id), event.edit];
      model.counted.push(...event.edit.layers);
      refreshLayers();
      on.add(event.edit.id);
      listEdits();
      at("checked").replaceChildren(...checked(event));
      tell(form, event.written
        ? "Written, and turned on in the list below. Maps stay those of the unedited model."
        : "The model still prefers its old answer: the fact was not written.");
    },
  });
}

const timeLeft = (seconds) => seconds === null ? "…"
  : seconds > 90 ? `about ${Math.round(seconds / 60)} min left`
    : `about ${Math.round(seconds)} s left`;

/** The total loss and its parts by step, as the reports draw them. */
function lossChart(losses, steps) {
  const margin = 40, top = 8, wide = 400, tall = 120;
  const parts = [["total", "total"], ["nll", "target"], ["kl", "KL"], ["decay", "decay"]];
  const high = Math.max(...losses.flatMap((step) => parts.map(([name]) => step[name]))) || 1;
  const x = (i) => margin + (wide * i) / Math.max(1, steps - 1);
  const y = (value) => top + tall * (1 - value / high);
  const svg = draw("svg", { class: "lines", viewBox: `0 0 ${margin + wide + 6} ${top + tall + 22}`,
    role: "img", "aria-label": "the loss and its parts by step" });
  const label = (left, down, text, anchor = "start") => draw("text",
    { x: left, y: down, "text-anchor": anchor }, text);
  svg.append(draw("path", { class: "axis", d: `M${margin} ${top}V${top + tall}H${margin + wide}` }),
    label(margin - 5, top + 8, number(high, 2), "end"),
    label(margin - 5, top + tall + 3, "0", "end"),
    label(margin, top + tall + 16, "step 0"),
    label(margin + wide, top + tall + 16, String(steps - 1), "end"));
  parts.forEach(([name, said], i) => {
    const left = margin + 130 + 75 * i;
    svg.append(draw("polyline", { class: `line-${name}`,
      points: losses.map((step, j) => `${x(j)},${y(step[name])}`).join(" ") }),
    draw("path", { class: `line-${name}`, d: `M${left} ${top + 6}h16` }),
    label(left + 20, top + 9, said));
  });
  return svg;
}

const ROLES = { rewrite: "Rewrite", paraphrase: "Paraphrase", neighbor: "Neighbor" };

/** Before and after: probabilities, what the model says, what else moved. */
function checked(event) {
  const heads = ["Prompt", `P(${event.target_new.trim()})`, `P(${event.target_true.trim()})`,
    "First choice"];
  const rows = event.probabilities.map((p) => [
    [make("span", { class: "soft small" }, ROLES[p.role]), make("br"), p.prompt],
    [pair(p.target_new_before, "new before"), pair(p.target_new_after, "new")],
    [pair(p.target_true_before, "true before"), pair(p.target_true_after, "true")],
    [`${p.first_before.trim()} → ${p.first_after.trim()}`]]);
  const moved = event.side_effects;
  return [make("p", { class: "soft small" }, "Upper bar before the edit, lower bar after. "
    + "Paraphrases should follow the rewrite; neighbors should stay as they were."),
  table(heads, rows), says(event),
  make("p", { class: "soft small" }, `On text about other things ${
    number(moved.first_choice_changed, 1)} % of next words change, KL ${number(moved.kl, 4)}.`)];
}

function pair(value, classes) {
  return make("div", { class: `bar ${classes}` }, make("span", {}, number(value)), bar(value));
}

function table(heads, rows) {
  const cell = (parts, i) => {
    const made = make("td", {}, ...parts);
    if (i > 0) made.dataset.head = heads[i];
    return made;
  };
  return make("div", { class: "scroll" }, make("table", { class: "stack" },
    make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", {}, head)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map(cell))))));
}

function says(event) {
  const texts = event.probabilities.map((p) => [p.prompt, p.continuation_before,
    p.continuation_after]);
  if (event.chat) texts.push([event.chat.question, event.chat.before, event.chat.after]);
  return make("div", { class: "said" }, ...texts.flatMap(([title, before, after]) => [
    make("h4", {}, title),
    make("p", {}, make("span", { class: "soft small" }, "before "), `… ${before}`),
    make("p", {}, make("span", { class: "soft small" }, "after "),
      after === before ? "the same" : `… ${after}`)]));
}

// ---- edits on and off ---------------------------------------------------------------------

function listEdits() {
  at("none").hidden = model.edits.length > 0;
  at("edits").replaceChildren(...model.edits.map(editRow));
  at("edited-title").textContent = on.size ? `With ${plural(on.size, "edit")}` : "Edited";
}

function editRow(edit) {
  const [first, ...others] = edit.requests;
  const box = make("input", { type: "checkbox", checked: on.has(edit.id) });
  box.addEventListener("change", () => {
    if (box.checked) on.add(edit.id); else on.delete(edit.id);
    listEdits();
    at("edits").querySelectorAll("input[type=checkbox]")[model.edits.indexOf(edit)].focus();
    if (at("unedited").hasChildNodes()) startAsk();
  });
  const more = others.length ? ` and ${others.length} more` : "";
  return make("li", {}, make("label", { class: "on" }, box, make("span", {},
    `${first.text} → ${first.target_new.trim()}${more} `, make("span", { class: "soft small" },
      `${edit.method}, layer${edit.layers.length > 1 ? "s" : ""} ${edit.layers.join(", ")}`))),
  edit.where ? make("span", { class: "soft small" }, `Saved in ${edit.where}`) : saving(edit),
  make("p", { class: "told small wrong", role: "alert" }));
}

/** A name to save an edit under, and a button. */
function saving(edit) {
  const { subject, target_new: target } = edit.requests[0];
  const slug = `${subject} ${target}`.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-")
    .replace(/^-|-$/g, "");
  const name = make("input", { value: edit.name ?? slug, ariaLabel: "name of the directory",
    spellcheck: false, autocomplete: "off" });
  name.addEventListener("input", () => { edit.name = name.value; });
  const form = make("form", {}, name, make("button", { type: "submit" }, "Save"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    save(edit, name.value, form.closest("li").querySelector(".told"));
  });
  return form;
}

async function save(edit, name, told) {
  try {
    const response = await request("save", { edit: edit.id, name });
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.message);
    edit.where = answer.where;
    listEdits();
  } catch (error) {
    told.textContent = sentence(error.message);
  }
}

// ---- asking -------------------------------------------------------------------------------

function startAsk() {
  const form = at("ask"), edits = [...on];
  at("edited").replaceChildren(...edits.length ? []
    : [make("p", { class: "soft" }, "No edit is on.")]);
  run(form, { prompt: field("ask", "prompt").value, chat: field("ask", "chat").value === "chat",
    edits }, {
    unedited: (event) => {
      answer("unedited", event);
      tell(form, edits.length ? "Asking with the edits on …" : "", { share: .5 });
    },
    edited: (event) => {
      answer("edited", event);
      tell(form, "");
    },
  });
}

function answer(id, event) {
  at(id).replaceChildren(make("p", {}, event.text.trim() + (event.ended ? "" : " …")),
    make("p", { class: "soft small" }, "The first word"), words(event.words, event.words[0][0]));
}

// ---- beginning ----------------------------------------------------------------------------

function refreshLayers() {
  const select = field("edit", "layer"), chosen = select.value || String(model.choice.layer);
  select.replaceChildren(...model.dense.map((layer) => {
    const notes = [layer === model.choice.layer && "this model's layer",
      !model.counted.includes(layer) && "C to be counted first"].filter(Boolean);
    return make("option", { value: layer }, [layer, ...notes].join(" · "));
  }));
  select.value = chosen;
}

/** Beside the button that writes: what is to be written. */
function nameFact() {
  const [prompt, subject] = ["prompt", "subject"].map((name) => field("trace", name).value);
  at("edits-fact").textContent = `Of “${prompt.replace("{}", subject)}”.`;
}

/** The examples' paraphrases and neighbors are of the example's fact: another fact has none. */
function forgetExamples() {
  for (const name of ["paraphrases", "neighbors"]) {
    const box = field("edit", name);
    if (box.value === box.defaultValue) box.value = "";
  }
}

function listen() {
  const starts = { trace: startTrace, edit: startEdit, ask: startAsk };
  for (const [id, start] of Object.entries(starts)) {
    at(id).addEventListener("submit", (event) => { event.preventDefault(); start(); });
    at(id).querySelector(".cancel").addEventListener("click", () => at(id).job?.abort());
  }
  for (const name of ["prompt", "subject"]) {
    field("trace", name).addEventListener("input", forgetExamples, { once: true });
    field("trace", name).addEventListener("input", nameFact);
  }
  field("trace", "kind").forEach((kind) => kind.addEventListener("change", () => {
    if (map) startTrace();
  }));
  field("edit", "layer").addEventListener("change", () => map && markLayer());
  for (const type of ["click", "pointermove"]) at("map").addEventListener(type, point);
  at("map").addEventListener("keydown", moveByKey);
  at("take").addEventListener("click", () => {
    field("edit", "layer").value = at("take").layer;
    markLayer();
    field("edit", "target_new").focus();
  });
  for (const box of document.querySelectorAll("textarea")) {
    box.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) box.form.requestSubmit();
    });
  }
}

async function begin() {
  listen();
  try {
    const response = await request("state");
    if (!response.ok) throw new Error(await response.text());
    model = await response.json();
  } catch (error) {
    at("about").textContent = sentence(error.message);
    return;
  }
  const { type, layers, dtype } = model;
  at("about").textContent = `${model.model} · ${type}, ${layers} layers, ${dtype}`;
  at("manner").hidden = !model.chat;
  nameFact();
  refreshLayers();
  listEdits();
}

begin();
