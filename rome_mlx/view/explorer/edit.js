// Another answer: written, its loss drawn as it falls, and measured.
"use strict";

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
