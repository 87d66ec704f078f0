// One step across the model's depth: every row a dot, its range over the run a faint bar.

const KINDS = ["blue", "orange", "green", "violet"];

function depthProfile(card, state, data) {
  const readout = element("span", { className: "readout" });
  card.append(element("div", { className: "head" }, element("h2", {}, "Profile over depth"), readout));
  const bins = data.metrics.rms, slider = element("input", {
    type: "range", min: 0, max: Math.max(0, bins.columns - 1), step: 1, value: binOf(bins.first, state.step),
  });
  slider.addEventListener("input", () => state.choose(bins.first[Number(slider.value)]));
  const shownStep = element("output");
  const pin = element("button", { type: "button" }, "Pin this step");
  pin.addEventListener("click", () => {
    state.pinned = state.pinned === null ? state.step : null;
    pin.textContent = state.pinned === null ? "Pin this step" : `Unpin step ${integer(state.pinned)}`;
    plot.redraw();
  });
  card.append(element("div", { className: "controls" },
    element("label", { className: "slider" }, "step", slider, shownStep), pin));
  const plot = surface(card, 300, draw, "Profile over depth. Arrow keys choose a row; up and down a step.");
  card.append(element("p", { className: "note" },
    "Left to right in model order, grouped and filtered as the heatmap. Faint bars: lowest to highest of the run. "
    + "Rings: the pinned step. Marks at the foot: zero; at the top: inf or NaN."));
  const view = {};
  let hovered = null;

  function refresh() {
    view.table = rollUp(data, state.metric, state.depth);
    view.rows = arrange(view.table, "model", state.filter, state.step);
    const known = statistics(view.table);
    view.spans = view.rows.map(row => [known.low[row], known.high[row]]);
    const low = Math.min(...view.spans.map(s => s[0]).filter(Number.isFinite));
    const high = Math.max(...view.spans.map(s => s[1]).filter(Number.isFinite));
    plot.canvas.hidden = !view.rows.length;
    const room = Math.max(0.15, (high - low) * 0.05);
    view.range = low <= high ? [low - room, high + room] : [-1, 1];
    const last = name => (state.depth === "parameter" ? name.slice(name.lastIndexOf(".") + 1) : "layer");
    const counts = new Map();
    for (const row of view.rows) counts.set(last(view.table.names[row]), (counts.get(last(view.table.names[row])) || 0) + 1);
    view.kinds = [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a)).slice(0, 3);
    view.kind = row => { const k = view.kinds.indexOf(last(view.table.names[row])); return k < 0 ? 3 : k; };
    view.others = counts.size > 3;
    plot.redraw();
    tell();
  }

  const x = i => EDGE.left + (i + 0.5) / view.rows.length * (plot.width - EDGE.left - EDGE.right);
  const y = at => EDGE.top + 10 + (1 - (at - view.range[0]) / (view.range[1] - view.range[0]))
    * (plot.height - EDGE.top - EDGE.bottom - 20);

  function draw(pen, width, height) {
    pen.clearRect(0, 0, width, height);
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    for (const at of logTicks(view.range[0], view.range[1], 7)) {
      const line = Math.round(y(at)) + 0.5;
      pen.strokeStyle = colour("grid");
      pen.beginPath(); pen.moveTo(EDGE.left, line); pen.lineTo(width - EDGE.right, line); pen.stroke();
      pen.fillStyle = colour("soft");
      pen.fillText(decade(at), EDGE.left - 7, line);
    }
    drawModules(pen, width, height);
    drawSpans(pen);
    if (state.pinned !== null) drawDots(pen, state.pinned, true);
    drawDots(pen, state.step, false);
    drawKinds(pen, width);
    const at = hovered ?? view.rows.indexOf(state.row);
    if (at >= 0 && at < view.rows.length) {
      pen.strokeStyle = colour("soft");
      const line = Math.round(x(at)) + 0.5;
      pen.beginPath(); pen.moveTo(line, EDGE.top); pen.lineTo(line, height - EDGE.bottom); pen.stroke();
    }
  }

  function drawSpans(pen) {
    pen.strokeStyle = colour("band");
    pen.lineWidth = Math.max(1, Math.min(6, (x(1) - x(0)) * 0.6 || 1));
    view.spans.forEach(([low, high], i) => {
      if (Number.isNaN(low)) return;
      pen.beginPath(); pen.moveTo(x(i), y(low)); pen.lineTo(x(i), Math.min(y(high), y(low) - 1)); pen.stroke();
    });
    pen.lineWidth = 1;
  }

  function drawDots(pen, step, pinned) {
    const column = binOf(view.table.first, step), size = Math.max(1.3, Math.min(4, (x(1) - x(0)) * 0.35 || 4));
    view.rows.forEach((row, i) => {
      const value = columnValue(view.table, row, column);
      if (value === NOTHING) return;
      pen.fillStyle = pen.strokeStyle = colourOf(pen, row, value);
      const at = value === BAD ? EDGE.top + 3 : value === ZERO ? plot.height - EDGE.bottom - 4 : y(value);
      pen.beginPath();
      if (ordinary(value)) pen.arc(x(i), at, pinned ? size + 0.8 : size, 0, 7);
      else pen.rect(x(i) - Math.max(1, size), at - 3, 2 * Math.max(1, size), 6);
      if (pinned) pen.stroke(); else pen.fill();
    });
  }

  let palette = null;
  function colourOf(pen, row, value) {
    palette ??= Object.fromEntries([...KINDS, "bad", "zero"].map(name => [name, colour(name)]));
    return value === BAD ? palette.bad : value === ZERO ? palette.zero : palette[KINDS[view.kind(row)]];
  }

  // The first components of the names under the axis, where they change.
  function drawModules(pen, width, height) {
    pen.textBaseline = "top";
    pen.textAlign = "center";
    let start = 0, free = 0;
    const short = row => view.table.names[row].split(".").slice(0, 2).filter((part, i) => i === 0 || /^\d+$/.test(part)).join(".");
    for (let i = 1; i <= view.rows.length; i++) {
      if (i < view.rows.length && short(view.rows[i]) === short(view.rows[start])) continue;
      const middle = (x(start) + x(i - 1)) / 2, name = short(view.rows[start]);
      const text = name.length > 22 ? `${name.slice(0, 21)}…` : name;
      const half = pen.measureText(text).width / 2;
      pen.fillStyle = colour("soft");
      if (middle - half > free && middle + half < width) {
        pen.fillText(text, middle, height - EDGE.bottom + 7);
        free = middle + half + 9;
      }
      start = i;
    }
  }

  function drawKinds(pen, width) {
    if (state.depth !== "parameter") return;
    let right = width - EDGE.right - 4;
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    const names = view.others ? [...view.kinds, "others"] : view.kinds;
    names.map((name, k) => [name, k]).reverse().forEach(([name, k]) => {
      const text = name.length > 18 ? `${name.slice(0, 17)}…` : name;
      pen.fillStyle = colour("ink");
      pen.fillText(text, right, EDGE.top + 4);
      right -= pen.measureText(text).width + 8;
      pen.fillStyle = colour(KINDS[Math.min(k, 3)]);
      pen.beginPath(); pen.arc(right, EDGE.top + 4, 4, 0, 7); pen.fill();
      right -= 16;
    });
  }

  function tell() {
    const column = binOf(view.table.first, state.step), at = hovered ?? view.rows.indexOf(state.row);
    slider.value = binOf(bins.first, state.step);
    shownStep.textContent = integer(state.step);
    slider.setAttribute("aria-valuetext", `step ${integer(state.step)}`);
    const row = view.rows[at];
    readout.textContent = row === undefined ? "" : `${view.table.names[row]} · `
      + `${stepRange(view.table.first[column], view.table.last[column])}, ${METRICS[state.metric]} ${cellText(columnValue(view.table, row, column))}`;
  }

  function rowAt(event) {
    const box = plot.canvas.getBoundingClientRect();
    const share = (event.clientX - box.left - EDGE.left) / (plot.width - EDGE.left - EDGE.right);
    return Math.max(0, Math.min(view.rows.length - 1, Math.floor(share * view.rows.length)));
  }
  plot.canvas.addEventListener("pointermove", event => { hovered = rowAt(event); plot.redraw(); tell(); });
  plot.canvas.addEventListener("pointerleave", () => { hovered = null; plot.redraw(); tell(); });
  plot.canvas.addEventListener("click", event => { state.row = view.rows[rowAt(event)]; state.announce("step"); });
  plot.canvas.addEventListener("keydown", event => {
    const rows = { ArrowLeft: -1, ArrowRight: 1 }[event.key], steps = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (rows === undefined && steps === undefined) return;
    event.preventDefault();
    if (rows !== undefined) {
      const at = view.rows.indexOf(state.row) + rows * (event.shiftKey ? 10 : 1);
      state.row = view.rows[Math.max(0, Math.min(view.rows.length - 1, at))];
      state.announce("step");
    } else {
      const to = Math.max(0, Math.min(bins.columns - 1, binOf(bins.first, state.step) + steps));
      state.choose(bins.first[to]);
    }
  });
  state.watchers.push(kind => {
    if (kind === "theme") palette = null;
    if (kind === "rows") return refresh();
    plot.redraw();
    tell();
  });
  refresh();
}

// The rows that stand out at the chosen step, as text.
function extremes(card, state, data) {
  const head = element("span", { className: "readout" }), place = element("div", { className: "tables" });
  card.append(element("div", { className: "head" }, element("h2", {}, "Rows that stand out"), head), place);

  function table(caption, heading, rows) {
    const made = element("table", {}, element("caption", {}, caption),
      element("tr", {}, element("th", { scope: "col" }, "row"), element("th", { scope: "col" }, heading)));
    for (const [name, value] of rows) made.append(element("tr", {}, element("td", {}, name), element("td", {}, value)));
    return made;
  }

  function refresh() {
    const values = rollUp(data, state.metric, state.depth), column = binOf(values.first, state.step);
    head.textContent = values.columns ? `${stepRange(values.first[column], values.last[column])}` : "";
    if (!values.columns) return;
    const rows = arrange(values, "model", state.filter, state.step);
    const recorded = rows.filter(row => columnValue(values, row, column) !== NOTHING);
    const byValue = recorded.slice().sort((a, b) => columnValue(values, b, column) - columnValue(values, a, column));
    const text = row => [values.names[row], cellText(columnValue(values, row, column))];
    const moved = recorded.map(row => [row, changeOf(values, row, column)]).filter(([, change]) => change > 0);
    moved.sort((a, b) => b[1] - a[1]);
    const change = ([row]) => {
      const value = columnValue(values, row, column);
      return [values.names[row], value === BAD ? "inf or NaN" : `×${format(Number((10 ** (value - middleOf(values, row))).toPrecision(3)))}`];
    };
    place.replaceChildren(
      table("Largest", METRICS[state.metric], byValue.slice(0, 8).map(text)),
      table("Smallest", METRICS[state.metric], byValue.slice(-8).reverse().map(text)),
      table("Farthest from their own median", "change", moved.slice(0, 8).map(change)));
  }
  state.watchers.push(kind => { if (kind !== "theme") refresh(); });
  refresh();
}
