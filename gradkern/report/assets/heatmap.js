// The heatmap, layers × steps, on a canvas. If there are more rows than pixels, a pixel shows the mean of its rows,
// or inf or NaN if any of them has it.

const GUTTER = 250, FOOT = 24, RIGHT = 14;  // pixels: most of the names, the steps, the right margin
const NARROW = 640;  // below, the legend has two lines
const METRICS = { rms: "rms of the gradient", ratio: "update ratio" };
const HINT = "Click or use the arrow keys to choose a step and a row. + and − (or double-click) zoom into rows, Page Up and Page Down scroll, "
  + "0 shows all rows. Drag over a curve to zoom into steps. A frame marks the layers of a finding from its first step on.";

class Heatmap {
  constructor(card, state, data) {
    Object.assign(this, { state, data, table: null, rows: [], start: 0, count: 0, low: 0, high: 1, image: null });
    this.readout = heading(card, "Layers × steps");
    this.readout.setAttribute("aria-live", "polite");
    buildControls(card, state, data, factor => this.zoom(factor));
    this.legend = new Surface(card, width => (width < NARROW ? 56 : 34), (pen, width) => this.drawLegend(pen, width), "Colour scale");
    this.legend.canvas.tabIndex = -1;
    this.plot = new Surface(card, () => FOOT + (this.count > 40 ? 620 : Math.max(90, this.count * 19)), (pen, width, height) => this.draw(pen, width, height),
      "Heatmap. Arrow keys move, plus and minus zoom, 0 shows all rows.");
    this.note = element("p", { className: "note" }, HINT);
    this.empty = element("p", { className: "empty", hidden: true }, "No row matches the filter.");
    card.append(this.note, this.empty);
    this.listen();
    this.refresh();
  }

  listen() {
    const canvas = this.plot.canvas;
    canvas.addEventListener("pointermove", event => this.point(event));
    canvas.addEventListener("pointerleave", () => { hideTip(); this.state.hover(null); });
    canvas.addEventListener("click", event => this.choose(event));
    canvas.addEventListener("dblclick", event => { const cell = this.cellAt(event); if (cell) this.zoom(0.35, cell.at); });
    canvas.addEventListener("keydown", event => this.press(event));
    this.state.watch(kind => this.changed(kind));
  }

  changed(kind) {
    if (kind === "rows") { this.refresh(); return; }
    if (kind === "theme" || kind === "zoom") this.image = null;
    this.plot.redraw();
    if (kind === "theme") this.legend.redraw();
    if (kind === "step") this.tell();
  }

  refresh() {
    const { state } = this;
    this.table = rollUp(this.data, state.metric, state.depth);
    const before = this.rows.length, zoomed = this.count;
    this.rows = arrange(this.table, state.order, state.filter, state.step);
    if (!this.rows.includes(state.row)) state.row = this.rows[0] ?? 0;
    const all = this.rows.length;
    this.count = before === all ? zoomed : all;  // another order keeps the zoom, around the chosen row
    this.start = Math.max(0, Math.min(all - this.count, Math.round(this.rows.indexOf(state.row) - this.count / 2)));
    this.image = null;
    [this.low, this.high] = colourRange(this.table, this.rows);
    this.empty.hidden = this.count > 0;
    this.plot.canvas.hidden = this.legend.canvas.hidden = this.note.hidden = this.count === 0;
    this.plot.redraw();
    this.legend.redraw();
    this.tell();
  }

  // ---- where a step, a column and a row lie ----

  // The names of the rows, cut to at most a third of the width but still different, and the room they take.
  get names() {
    const width = this.plot.canvas.clientWidth;
    if (this.named?.table !== this.table || this.named.width !== width) {
      const pen = this.plot.canvas.getContext("2d"), most = Math.min(GUTTER, width / 3);
      pen.font = FONT;
      const labels = fitNames(this.table.names, Math.max(8, Math.floor(most / 6.5)));
      const longest = [...labels].sort((a, b) => b.length - a.length).slice(0, 50);
      const gutter = Math.ceil(Math.min(most, 16 + Math.max(0, ...longest.map(name => pen.measureText(name).width))));
      this.named = { table: this.table, width, labels, gutter };
    }
    return this.named;
  }

  get gutter() { return this.names.gutter; }

  xOf(step) {
    const [from, to] = this.state.extent();
    return this.gutter + (step - from) / (to - from) * (this.plot.width - this.gutter - RIGHT);
  }

  stepAt(share) {
    const [from, to] = this.state.extent();
    return from + share * (to - from);
  }

  cellAt(event) {
    const box = this.plot.canvas.getBoundingClientRect();
    const share = (event.clientX - box.left - this.gutter) / (this.plot.width - this.gutter - RIGHT);
    const at = this.start + Math.floor((event.clientY - box.top) / (this.plot.height - FOOT) * this.count);
    if (at < this.start || at >= this.start + this.count || share > 1) return null;
    return { row: this.rows[at], at, column: binOf(this.table.first, this.stepAt(Math.max(0, share))) };
  }

  // ---- drawing ----

  draw(pen, width, height) {
    if (!this.count || !this.table.columns) return;
    const across = width - this.gutter - RIGHT, down = height - FOOT, ratio = devicePixelRatio || 1;
    const wide = Math.max(1, Math.round(across * ratio)), tall = Math.max(1, Math.round(down * ratio));
    if (!this.image || this.image.width !== wide || this.image.height !== tall) this.image = this.rendered(wide, tall);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(this.image, this.gutter, 0, across, down);
    this.drawLabels(pen, down);
    this.drawSteps(pen, width, down);
    this.drawFindings(pen, across, down);
    this.drawChosen(pen, across, down);
  }

  rendered(wide, tall) {
    const image = new ImageData(wide, tall), pixels = new Uint32Array(image.data.buffer);
    const paint = { nothing: pack(rgbOf("nothing")), zero: pack(rgbOf("zero")), bad: pack(rgbOf("bad")), palette: SEQUENTIAL.map(pack) };
    const columns = Array.from({ length: wide }, (_, px) => binOf(this.table.first, this.stepAt((px + 0.5) / wide)));
    let line = null, painted = "";
    for (let py = 0; py < tall; py++) {
      const first = this.start + Math.floor(py * this.count / tall);
      const last = Math.max(first + 1, this.start + Math.floor((py + 1) * this.count / tall));
      if (painted !== `${first} ${last}`) line = this.lineOf(first, last, paint);
      painted = `${first} ${last}`;
      for (let px = 0; px < wide; px++) pixels[py * wide + px] = line[columns[px]];
    }
    const buffer = element("canvas", { width: wide, height: tall });
    buffer.getContext("2d").putImageData(image, 0, 0);
    return buffer;
  }

  lineOf(first, last, paint) {
    return Uint32Array.from({ length: this.table.columns }, (_, column) => {
      const value = meanOf(this.table, this.rows.slice(first, last), column);
      if (value === BAD) return paint.bad;
      if (value === ZERO) return paint.zero;
      if (value === NOTHING) return paint.nothing;
      return paint.palette[Math.max(0, Math.min(255, Math.round((value - this.low) * 255 / (this.high - this.low))))];
    });
  }

  drawLabels(pen, down) {
    const each = down / this.count;
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    pen.fillStyle = colour("ink");
    if (each >= 11.5) {
      for (let i = 0; i < this.count; i++) this.label(pen, i, (i + 0.5) * each);
      return;
    }
    const groups = this.state.order === "model" ? this.stretches(down) : [];
    if (groups.length >= 8) drawStretches(pen, groups, down, each, this.gutter);
    else for (let at = 8; at < down; at += 22) this.label(pen, Math.floor(at / each), at);
  }

  label(pen, i, at) {
    const { labels, gutter } = this.names;
    pen.fillText(labels[this.rows[this.start + i]], gutter - 8, at, gutter - 14);  // squeezed where it is too wide
  }

  // Rows that share leading components of their names, as deep as there is room for.
  stretches(down) {
    let groups = [];
    for (let depth = 1; depth <= 8; depth++) {
      const finer = [];
      for (let i = 0; i < this.count; i++) {
        const parts = this.table.names[this.rows[this.start + i]].split(".");
        const prefix = parts.slice(0, Math.min(depth, Math.max(1, parts.length - 1))).join(".");
        const current = finer[finer.length - 1];
        if (current && current.prefix === prefix) current.end = i + 1; else finer.push({ prefix, start: i, end: i + 1 });
      }
      if (groups.length && finer.length * 14 > down) break;
      groups = finer;
    }
    return groups;
  }

  drawSteps(pen, width, down) {
    const [from, to] = this.state.extent();
    pen.fillStyle = colour("soft");
    pen.textBaseline = "top";
    for (const step of ticks(from, to, Math.max(2, Math.floor(width / 130))).filter(Number.isInteger)) {
      pen.textAlign = this.xOf(step) > width - 50 ? "right" : "center";
      pen.fillText(integer(step), this.xOf(step), down + 6);
    }
  }

  // A frame around the layers of each finding from its first step on, with its name.
  drawFindings(pen, across, down) {
    const each = down / this.count, right = this.gutter + across, shown = this.rows.slice(this.start, this.start + this.count);
    for (const finding of this.state.findings) {
      const layers = new Set(finding.layers.map(name => layerOf(name, this.state.depth)));
      const left = Math.max(this.gutter, this.xOf(finding.first_step));
      if (left > right || !layers.size) continue;
      const ink = colour(SEVERITY[finding.severity]);
      const stretches = stretchesOf(shown.map(row => layers.has(this.table.names[row])));
      pen.lineWidth = 2;
      pen.strokeStyle = ink;
      pen.setLineDash([5, 3]);
      for (const [first, end] of stretches) {
        pen.strokeRect(left, first * each + 1, right - left - 1, Math.max(2, (end - first) * each - 2));
      }
      pen.setLineDash([]);
      pen.lineWidth = 1;
      if (stretches.length) drawTag(pen, sentence(finding.kind), ink, left, stretches[0][0] * each, this.gutter, right);
    }
  }

  drawChosen(pen, across, down) {
    const upright = (step, ink) => {
      if (step === null) return;
      const x = Math.round(this.xOf(step)) + 0.5;
      if (x < this.gutter || x > this.gutter + across) return;
      pen.strokeStyle = colour(ink);
      pen.strokeRect(x, 0, 0, down);
    };
    upright(this.state.hovered, "soft");
    upright(this.state.step, "ink");
    const at = this.rows.indexOf(this.state.row) - this.start, each = down / this.count;
    if (at >= 0 && at < this.count) {
      pen.strokeStyle = colour("ink");
      pen.strokeRect(this.gutter + 0.5, at * each + 0.5, across - 1, Math.max(2, each - 1));
    }
  }

  drawLegend(pen, width) {
    pen.fillStyle = colour("soft");
    pen.textBaseline = "top";
    pen.textAlign = "left";
    pen.fillText(METRICS[this.state.metric], 0, 2);
    const left = pen.measureText(METRICS[this.state.metric]).width + 12, narrow = width < NARROW;
    const long = Math.min(320, narrow ? width - left - RIGHT : width - left - RIGHT - 330);
    for (let i = 0; i < long; i++) {
      pen.fillStyle = `rgb(${SEQUENTIAL[Math.floor(i / long * 256)].join(",")})`;
      pen.fillRect(left + i, 2, 1.5, 12);
    }
    pen.fillStyle = colour("soft");
    pen.textAlign = "center";
    const marks = ticks(this.low, this.high, Math.max(2, Math.floor(long / 60)));
    for (const at of marks) pen.fillText(decade(at), left + (at - this.low) / (this.high - this.low) * long, 17);
    drawSpecials(pen, narrow ? 0 : left + long + 26, narrow ? 38 : 2);
  }

  // ---- input ----

  point(event) {
    const cell = this.cellAt(event);
    if (!cell) { hideTip(); return; }
    showTip(event, `${this.table.names[cell.row]}\n${this.describe(cell.row, cell.column)}`);
    this.state.hover(this.table.first[cell.column]);
  }

  choose(event) {
    const cell = this.cellAt(event);
    if (!cell) return;
    this.state.row = cell.row;
    this.state.choose(this.table.first[cell.column]);
  }

  press(event) {
    if (stepKeys(event, this.state, this.table)) return;
    const page = Math.max(1, Math.round(this.count * 0.8));
    const rows = { ArrowUp: -1, ArrowDown: 1, PageUp: -page, PageDown: page }[event.key];
    const factor = { "+": 0.5, "=": 0.5, "-": 2, 0: Infinity }[event.key];
    if (rows === undefined && factor === undefined) return;
    event.preventDefault();
    if (rows !== undefined) this.moveRow(rows); else this.zoom(factor);
  }

  zoom(factor, around = this.rows.indexOf(this.state.row)) {
    const all = this.rows.length, count = Math.min(all, Math.max(Math.min(8, all), Math.round(this.count * factor)));
    const centre = around < 0 ? this.start + this.count / 2 : around;
    this.count = count;
    this.image = null;
    this.start = Math.max(0, Math.min(all - count, Math.round(centre - count / 2)));
    this.plot.redraw();
  }

  moveRow(by) {
    const at = this.rows.indexOf(this.state.row), next = Math.max(0, Math.min(this.rows.length - 1, at + by));
    this.state.row = this.rows[next];
    if (next < this.start) this.start = next;
    if (next >= this.start + this.count) this.start = next - this.count + 1;
    this.image = null;
    this.plot.redraw();
    this.tell();
  }

  describe(row, column) {
    const value = columnValue(this.table, row, column), middle = middleOf(this.table, row);
    const against = ordinary(value) && !Number.isNaN(middle) ? `, ×${format(10 ** (value - middle))} its median` : "";
    return `${stepRange(this.table.first[column], this.table.last[column])}, ${METRICS[this.state.metric]} ${cellText(value)}${against}`;
  }

  tell() {
    const there = this.count && this.table.columns;
    this.readout.textContent = there
      ? `${this.table.names[this.state.row]} · ${this.describe(this.state.row, binOf(this.table.first, this.state.step))}` : "";
  }
}
