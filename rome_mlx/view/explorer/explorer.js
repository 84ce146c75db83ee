// The explorer's page begins: its forms start jobs, and the model is asked what it is.
"use strict";

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
