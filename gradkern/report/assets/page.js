// The page itself: tiles, cards, theme. Text from the run enters through textContent only.

const data = decode(document.getElementById("run").textContent);
const bins = data.series;
const state = new State(data);

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

function curves(parent) {
  const bad = { at: bins.nonfinite, colour: "bad", full: true }, skipped = { at: bins.skipped, colour: "red", full: true };
  const spikes = { at: bins.spikes, colour: "violet" };
  stepChart(card(parent, true), state, bins, {
    title: `Total norm, ${data.phase}`, log: true, marks: [{ at: bins.clip_rate, colour: "orange" }, spikes, bad, skipped],
    curves: [{ label: "total norm", colour: "blue", values: bins.norm, low: bins.norm_low, high: bins.norm_high }],
    threshold: data.run.max_norm === null ? null : { value: data.run.max_norm, label: `threshold ${format(data.run.max_norm)}` },
    empty: "No finite total norm was recorded.",
    note: "Line: mean; band: minimum to maximum of each bin of steps. Marks at the bottom: clipped steps (orange) and spikes "
      + "(violet). Bars of full height: inf or NaN, or skipped steps. Dashed lines: first step of a finding. "
      + "Dotted lines: rollbacks and new thresholds. Drag to zoom, double-click to reset.",
  });
  stepChart(card(parent), state, bins, {
    title: "Loss", curves: [{ label: "loss", colour: "green", values: bins.loss, low: bins.loss_low, high: bins.loss_high }],
    marks: [bad], empty: "No loss was recorded. Pass it to record(stats, loss=loss).",
  });
  const rates = data.clipping;
  stepChart(card(parent), state, rates, {
    title: "Clip rate and coefficient", unit: "%", range: [0, 1.05],
    curves: [
      { label: "steps clipped", colour: "orange", values: rates.rate },
      { label: "smallest coefficient", colour: "violet", values: rates.coef, dash: [4, 3] },
    ],
    empty: "No clipping was recorded. Use record(clipper.clip_()).",
  });
}

function updates(parent) {
  const bands = data.ratio_bands ?? { first: [], last: [], low: [], mid: [], high: [], top: [] };
  for (const key of ["low", "mid", "high", "top"]) bands[key] = numbers(bands[key]);
  stepChart(card(parent), state, bands, {
    title: "Update ratios ‖Δw‖ / ‖w‖", log: true, threshold: { value: 1e-3, label: "1e-3, a common rule of thumb" },
    empty: "No update ratios were recorded. Pass the optimizer: GradMonitor(model, optimizer, …).",
    curves: [
      { label: "median", colour: "blue", values: bands.mid, low: bands.low, high: bands.high },
      { label: "largest", colour: "red", values: bands.top, dash: [4, 3] },
    ],
    note: `Over all parameters; band: 10th to 90th percentile. ${data.ratio_note}`,
  });
}

function learningRate(parent) {
  stepChart(card(parent, true), state, bins, {
    title: "Learning rate", height: 160, curves: [{ label: "learning rate", colour: "violet", values: bins.lr }],
    empty: "No learning rate was recorded. Pass the optimizer: GradMonitor(model, optimizer, …).",
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
  findings(cards, state, data);
  if (!data.run.steps) {
    card(cards, true).append(element("p", { className: "empty" }, "No step has been recorded yet."));
    return;
  }
  events(cards, state, data);
  curves(cards);
  groups(cards, state, data);
  new Heatmap(card(cards, true), state, data);
  new Profile(card(cards, true), state, data);
  new Extremes(card(cards, true), state, data);
  updates(cards);
  histogram(card(cards), state, data);
  learningRate(cards);
  own(cards, state, data);
  document.body.append(tip);
}

build();
