// The list of edits, turned on and off and saved, and what the model says with those that are on.
"use strict";

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
