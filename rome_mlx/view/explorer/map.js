// The map of a fact: asked for, drawn as it comes, and read cell by cell.
"use strict";

const KINDS = {
  hidden: () => "one hidden state",
  mlp: (window) => `${window} MLPs around the layer`,
  attn: (window) => `${window} attentions around the layer`,
};

let map = null;  // the trace on the page
const finished = new Map();  // exact maps by what was asked, so that kinds can be compared
const cells = new Cells(at("map"), read);

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
  const same = map && map.tokens.join("\n") === next.tokens.join("\n");
  map = next;
  const [begin, end] = map.subject_range;
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
  if (!same) Object.assign(cells, { row: end - 1, column: model.choice.layer, held: false });
  paint();
}

/** The map's grid: a row a token, a column a layer, and below the layers' numbers. */
function layOut() {
  const box = at("map"), last = map.tokens.length - 1, [begin, end] = map.subject_range;
  box.className = `map ${map.kind}`;
  box.style.gridTemplateColumns = `max-content repeat(${model.layers}, minmax(0, 1fr))`;
  box.replaceChildren();
  cells.columns = model.layers;
  cells.all = map.tokens.flatMap((text, position) => {
    const inside = begin <= position && position < end;
    box.append(make("span", { class: inside ? "token subject" : "token", title: visible(text) },
      tokenName(text) + (inside ? "*" : "")));
    return Array.from({ length: model.layers }, (_, layer) => {
      const edges = [position === 0 && "top", position === last && "bottom",
        layer === 0 && "left", layer === model.layers - 1 && "right"].filter(Boolean);
      const cell = make("span", { class: ["cell", ...edges].join(" ") });
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
  cells.all.forEach((cell, i) => {
    const position = Math.floor(i / cells.columns), layer = i % cells.columns;
    const part = map.scores ? (map.scores[position][layer] - low) / (high - low) : 0;
    cell.style.setProperty("--v", Math.min(1, Math.max(0, part)));
    cell.classList.toggle("exact", position in map.rows);
  });
  at("scale").textContent = map.scores
    ? `Empty: ${number(low)}, as with the subject hidden. Full colour: ${number(high)}.` : "\u00a0";
  const told = finished.has(map.key) || !map.scores ? map.told
    : ["Decisive layer: named when the map is exact.", ...map.told];
  at("layers").replaceChildren(...told.map((text) => make("p", {}, text)));
  cells.show();
}

/** What is known of a cell, beside the map. */
function read({ row: position, column: layer }) {
  const row = map.rows[position];
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
