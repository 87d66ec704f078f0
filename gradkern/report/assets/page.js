// The page itself: tiles, cards, theme. Text from the run enters through textContent only.

const data = decode(document.getElementById("run").textContent);
const bins = data.series;
const state = {
  step: bins.last.length ? data.metrics.rms.first[data.metrics.rms.columns - 1] ?? bins.first[bins.first.length - 1] : 0,
  row: 0, pinned: null, metric: "rms", depth: data.names.length > 400 ? "layer" : "parameter",
  order: "model", filter: "", relative: false, watchers: [],
  announce(kind) { for (const watcher of this.watchers) watcher(kind); },
  choose(step) {
    this.step = step;
    this.announce(this.order === "value" || this.order === "change" ? "rows" : "step");
  },
};

function card(parent, wide) {
  const made = element("section", { className: wide ? "card wide" : "card" });
  parent.append(made);
  return made;
}

function tile(parent, text, label, alarm) {
  parent.append(element("div", { className: alarm ? "tile alarm" : "tile" }, element("b", {}, text), element("span", {}, label)));
}

function tiles(parent) {
  const run = data.run;
  tile(parent, integer(run.steps), run.steps ? `steps recorded (${integer(run.first)} to ${integer(run.last)})` : "steps recorded");
  tile(parent, integer(data.names.length), `parameters, ${integer(data.numel.reduce((a, b) => a + b, 0))} elements`);
  tile(parent, format(run.total_norm), `total norm, ${data.phase}, last step`);
  const threshold = run.max_norm === null ? "" : ` (threshold ${format(run.max_norm)})`;
  if (run.clip_rate !== null) tile(parent, percent(run.clip_rate), `of steps clipped${threshold}`);
  if (run.loss !== null) tile(parent, format(run.loss), "loss, last recorded");
  if (run.skipped) tile(parent, integer(run.skipped), "steps skipped", true);
  tile(parent, integer(run.nonfinite_steps), run.first_nonfinite
    ? `steps with inf or NaN; first at ${integer(run.first_nonfinite.step)}: ${run.first_nonfinite.text}`
    : "steps with inf or NaN", run.nonfinite_steps > 0);
}

function findings(parent) {
  if (!data.findings.length) return;
  const place = card(parent, true);
  place.append(element("div", { className: "head" }, element("h2", {}, "Findings")));
  for (const found of data.findings) {
    const made = element("article", { className: "finding" },
      element("h3", {}, `${found.severity}: ${found.kind}${found.first_step === null ? "" : `, since step ${integer(found.first_step)}`}`));
    if (["critical", "error", "warning"].includes(found.severity)) made.classList.add(found.severity);
    if (found.layers.length) made.append(element("p", {}, `Where: ${found.layers.join(", ")}`));
    for (const text of [found.evidence, found.why]) if (text) made.append(element("p", {}, text));
    if (found.remedies.length) made.append(element("ul", {}, ...found.remedies.map(text => element("li", {}, text))));
    place.append(made);
  }
}

function curves(parent) {
  const bad = { at: bins.nonfinite, colour: "bad", full: true, tell: i => `${integer(bins.nonfinite[i])} with inf or NaN` };
  const clipped = { at: bins.clip_rate, colour: "orange", tell: i => `${percent(bins.clip_rate[i])} clipped` };
  const skipped = { at: bins.skipped, colour: "red", full: true, tell: i => `${integer(bins.skipped[i])} skipped` };
  curveChart(card(parent, true), state, bins, {
    title: `Total norm, ${data.phase}`, log: true, marks: [clipped, bad, skipped],
    curves: [{ label: "total norm", colour: "blue", mid: bins.norm, low: bins.norm_low, high: bins.norm_high }],
    threshold: data.run.max_norm === null ? null : { value: data.run.max_norm, label: `threshold ${format(data.run.max_norm)}` },
    empty: "No finite total norm was recorded.",
    note: "Line: mean of a bin; band: lowest to highest. Orange marks at the foot: steps that were clipped. "
      + "Coloured bars at full height: inf, NaN or skipped steps.",
  });
  curveChart(card(parent), state, bins, {
    title: "Loss", curves: [{ label: "loss", colour: "green", mid: bins.loss, low: bins.loss_low, high: bins.loss_high }],
    marks: [bad], empty: "No loss was recorded. Give it to record(stats, loss=loss).",
  });
  const rates = data.clipping;
  curveChart(card(parent), state, rates, {
    title: "Clip rate and coefficient", unit: "%", range: rates.rate.some(Number.isFinite) ? [0, 1.2] : null,
    curves: [
      { label: "steps clipped", colour: "orange", mid: rates.rate },
      { label: "smallest coefficient", colour: "violet", mid: rates.coef, dash: [4, 3] },
    ],
    empty: "No clipping was recorded. record(clipper.clip_()) records it.",
  });
}

function updates(parent) {
  const bands = data.ratio_bands, place = card(parent);
  const empty = "No update ratios were recorded. They need the optimizer: GradMonitor(model, optimizer, …).";
  if (!bands) {
    place.append(element("div", { className: "head" }, element("h2", {}, "Update ratios")), element("p", { className: "empty" }, empty));
    return;
  }
  for (const key of ["low", "mid", "high", "top"]) bands[key] = numbers(bands[key]);
  curveChart(place, state, bands, {
    title: "Update ratios ‖Δw‖ / ‖w‖", log: true, empty,
    threshold: { value: 1e-3, label: "1e-3, a common rule of thumb" },
    curves: [
      { label: "median", colour: "blue", mid: bands.mid, low: bands.low, high: bands.high },
      { label: "largest", colour: "red", mid: bands.top, dash: [4, 3] },
    ],
    note: `Over parameters; band: a tenth to nine tenths of them. ${data.ratio_note}`,
  });
}

function learningRate(parent) {
  curveChart(card(parent, true), state, bins, {
    title: "Learning rate", height: 130, curves: [{ label: "learning rate", colour: "violet", mid: bins.lr }],
    empty: "No learning rate was recorded. Give the optimizer to GradMonitor.",
  });
}

function theme(button) {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  const apply = () => {
    document.documentElement.dataset.theme = chosen ?? (dark.matches ? "dark" : "light");
    button.textContent = document.documentElement.dataset.theme === "dark" ? "Light" : "Dark";
    state.announce("theme");
  };
  dark.addEventListener("change", apply);
  button.addEventListener("click", () => {
    chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    apply();
  });
  apply();
}

function build() {
  const main = document.querySelector("main"), button = element("button", { type: "button", title: "Change colours" });
  theme(button);
  main.append(element("header", {}, element("h1", {}, data.title), element("p", {}, data.subtitle), button));
  const summary = element("div", { className: "tiles" });
  main.append(summary);
  tiles(summary);
  const cards = element("div", { className: "cards" });
  main.append(cards);
  findings(cards);
  if (!data.run.steps) {
    card(cards, true).append(element("p", { className: "empty" }, "This run has no step yet."));
    return;
  }
  curves(cards);
  heatmap(card(cards, true), state, data);
  depthProfile(card(cards, true), state, data);
  extremes(card(cards, true), state, data);
  updates(cards);
  histogram(card(cards), state, data);
  learningRate(cards);
  document.body.append(tip);
}

build();
