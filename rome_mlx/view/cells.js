// Cells of maps and bars that answer the pointer, a finger and the arrow keys.
"use strict";

/** Cells in rows, of which one is read. A click or Enter holds it, Escape lets go. */
class Cells {
  /** box: what holds the cells; read: called with this when another cell is read. */
  constructor(box, read) {
    Object.assign(this, { box, read, all: [], columns: 1, row: 0, column: 0, held: false });
    for (const type of ["click", "pointermove"]) {
      box.addEventListener(type, (event) => this.point(event));
    }
    box.addEventListener("keydown", (event) => this.press(event));
  }

  get cell() {
    return this.all[this.row * this.columns + this.column];
  }

  show(row = this.row, column = this.column, held = this.held) {
    this.cell?.classList.remove("at", "held");
    Object.assign(this, { row, column, held });
    this.cell.classList.add("at");
    this.cell.classList.toggle("held", held);
    this.read(this);
  }

  point(event) {
    const under = document.elementFromPoint(event.clientX, event.clientY);
    const index = this.all.indexOf(under?.closest(".cell"));
    if (index < 0) return;
    const same = this.cell === this.all[index];
    const clicked = event.type === "click";
    if (!clicked && (same || this.held)) return;
    this.show(Math.floor(index / this.columns), index % this.columns,
      clicked && !(this.held && same));
  }

  press(event) {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (!this.all.length) return;
    if (event.key === "Enter") this.show(this.row, this.column, !this.held);
    else if (event.key === "Escape") this.show(this.row, this.column, false);
    else if (event.key in steps) {
      const [down, right] = steps[event.key];
      this.show(within(this.row + down, this.all.length / this.columns),
        within(this.column + right, this.columns));
    } else return;
    event.preventDefault();
  }
}

const within = (value, length) => Math.min(length - 1, Math.max(0, value));
