// The values of one step over the depth of the model, by uPlot: a dot for each row, its range over the run as a band.

const KINDS = ["blue", "orange", "green", "violet"];

class Profile {
  constructor(card, state, data) {
    Object.assign(this, { card, state, data, plot: null });
    this.readout = heading(card, "Profile over depth");
    this.addSlider();
    this.host = element("div");
    card.append(this.host, element("p", { className: "note" },
      "In model order from left to right, grouped and filtered like the heatmap. Band: minimum to maximum over the run. Grey line: the pinned "
      + "step. Rows with zero, inf or NaN at this step are not shown."));
    state.watch(kind => this.changed(kind));
    this.refresh();
  }

  addSlider() {
    const bins = this.data.metrics.rms;
    this.slider = element("input", { type: "range", min: 0, max: Math.max(0, bins.columns - 1), step: 1 });
    this.slider.addEventListener("input", () => this.state.choose(bins.first[Number(this.slider.value)]));
    this.shown = element("output");
    this.pin = element("button", { type: "button" }, "Pin this step");
    this.pin.addEventListener("click", () => {
      this.state.pinned = this.state.pinned === null ? this.state.step : null;
      this.pin.textContent = this.state.pinned === null ? "Pin this step" : `Unpin step ${integer(this.state.pinned)}`;
      this.changed("step");
    });
    this.card.append(element("div", { className: "controls" },
      element("label", { className: "slider" }, "step", this.slider, this.shown), this.pin));
  }

  changed(kind) {
    if (kind === "rows") this.refresh();
    else if (kind === "step") { if (this.plot) this.plot.setData(this.columns()); this.tell(); }
  }

  refresh() {
    this.table = rollUp(this.data, this.state.metric, this.state.depth);
    this.rows = arrange(this.table, "model", this.state.filter, this.state.step);
    const last = row => (this.state.depth === "parameter" ? this.table.names[row].replace(/.*\./, "") : "layer");
    const counts = new Map();
    for (const row of this.rows) counts.set(last(row), (counts.get(last(row)) || 0) + 1);
    const common = [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a)).slice(0, 3);
    this.kinds = counts.size > 3 ? [...common, "others"] : common;
    this.kindOf = row => { const k = common.indexOf(last(row)); return k < 0 ? 3 : k; };
    this.plot?.destroy();
    this.host.replaceChildren();
    this.plot = this.rows.length ? this.build() : null;
    this.tell();
  }

  // x, highest, lowest, the pinned step, then the chosen step once for each kind.
  columns() {
    const known = statistics(this.table), power = v => (ordinary(v) && !Number.isNaN(v) ? 10 ** v : null);
    const at = (step, wanted) => {
      const column = binOf(this.table.first, step);
      return this.rows.map(row => (wanted(row) ? power(columnValue(this.table, row, column)) : null));
    };
    return [this.rows.map((_, i) => i),
      this.rows.map(row => power(known.high[row])), this.rows.map(row => power(known.low[row])),
      this.state.pinned === null ? this.rows.map(() => null) : at(this.state.pinned, () => true),
      ...this.kinds.map((_, k) => at(this.state.step, row => this.kindOf(row) === k))];
  }

  build() {
    const value = (_, v) => format(v), edge = { stroke: null, width: 0, points: { show: false }, value };
    const names = this.rows.map(row => this.table.names[row]);
    const series = [{ label: "row", value: (_, i) => (i === null ? "–" : names[i]) },
      { ...edge, label: "highest" }, { ...edge, label: "lowest" },
      { label: "pinned", stroke: () => colour("soft"), width: 1, points: { show: false }, value },
      ...this.kinds.map((kind, k) => ({
        label: kind, stroke: () => colour(KINDS[k]), value, paths: () => null,
        points: { show: true, size: Math.max(3, Math.min(8, 900 / this.rows.length)), fill: () => colour(KINDS[k]) },
      }))];
    return plotIn(this.host, this.state, {
      height: 320, series, bands: [{ series: [1, 2], fill: () => `${colour("soft")}22` }],
      scales: { x: { time: false, range: [-0.5, this.rows.length - 0.5] }, y: { distr: 3 } },
      axes: [axis({ size: 28, values: (_, at) => at.map(i => shortName(names[i])) }), axis({ size: 62, values: (_, at) => at.map(v => (v === null ? "" : decade(Math.log10(v)))) })],
      cursor: { drag: { x: false, y: false } },
    }, this.columns());
  }

  tell() {
    const bins = this.data.metrics.rms;
    this.slider.value = binOf(bins.first, this.state.step);
    this.slider.setAttribute("aria-valuetext", `step ${integer(this.state.step)}`);
    this.shown.textContent = integer(this.state.step);
    const column = binOf(this.table.first, this.state.step);
    this.readout.textContent = this.table.columns ? `${stepRange(this.table.first[column], this.table.last[column])}, ${METRICS[this.state.metric]}` : "";
  }
}

// The components of a name that tell blocks apart.
function shortName(name) {
  if (name === undefined) return "";
  const parts = name.split(".").slice(0, 3).filter((part, i) => i === 0 || /^\d+$/.test(part)).join(".");
  return clipMiddle(parts, 18);
}
