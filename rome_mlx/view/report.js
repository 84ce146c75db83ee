// A report's maps and bars are read cell by cell, and its tables sort.

/** At the card's end a place of fixed height, for the title of the cell that is read. */
function readable(box) {
  const place = document.createElement("p");
  place.className = "reading";
  place.setAttribute("aria-live", "polite");
  const titles = new Map();
  const cells = new Cells(box, ({ cell }) => place.replaceChildren(
    ...titles.get(cell).split("\n").flatMap((line) => [spanOf(line), " "])));
  cells.all = [...box.querySelectorAll(".cell")];
  cells.columns = Number(box.dataset.columns);
  for (const cell of cells.all) titles.set(cell, taken(cell));
  box.tabIndex = 0;
  box.setAttribute("role", "group");
  box.setAttribute("aria-describedby", "help");
  box.setAttribute("aria-label", box.parentNode.querySelector("h3").textContent);
  box.parentNode.append(place);
  const start = Number(box.dataset.start);
  cells.show(Math.floor(start / cells.columns), start % cells.columns);
}

function spanOf(text) {
  const span = document.createElement("span");
  span.textContent = text;
  return span;
}

/** A cell's title, which the browser then no longer shows over the map. */
function taken(cell) {
  const element = cell.querySelector("title");
  const text = element ? element.textContent : cell.title;
  element?.remove();
  cell.removeAttribute("title");
  return text;
}

/** Heads that sort: up, down, and back to the first order. */
function sortable(table) {
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  table.classList.add("sortable");
  heads.forEach((head, column) => {
    if (!head.textContent) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const next = { ascending: "descending", descending: "" };
      const order = next[head.getAttribute("aria-sort")] ?? "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      if (order) head.setAttribute("aria-sort", order);
      body.append(...order ? sorted(rows, column, order === "ascending" ? 1 : -1) : rows);
    });
  });
}

/** Rows by a column, numbers by size and before texts; equal ones stay in order, empty ones last. */
function sorted(rows, column, sign) {
  const keys = new Map(rows.map((row) => [row, keyOf(row.cells[column])]));
  return [...rows].sort((one, other) => {
    const [a, b] = [keys.get(one), keys.get(other)];
    if (a === "" || b === "") return (a === "") - (b === "");
    if (typeof a !== typeof b) return sign * (typeof a === "number" ? -1 : 1);
    return sign * (typeof a === "number" ? a - b : a.localeCompare(b));
  });
}

/** What a cell sorts by: the last number that its markup names, else its text, as a number if it is
 *  one. */
function keyOf(cell) {
  const text = [...cell.querySelectorAll("[data-key]")].at(-1)?.dataset.key
    ?? cell.textContent.trim();
  return text === "" || Number.isNaN(Number(text)) ? text : Number(text);
}

document.querySelectorAll("#help").forEach((help) => { help.hidden = false; });
document.querySelectorAll("[data-columns]").forEach(readable);
document.querySelectorAll("table").forEach(sortable);
