// Layers × steps. Where there are more rows than pixels a pixel shows the mean of its rows, and inf or NaN
// in any of them.

const GUTTER = 250, FOOT = 24;

function heatmap(card, state, data) {
  const readout = element("span", { className: "readout" });
  readout.setAttribute("aria-live", "polite");
  const title = element("h2", {}, "Layers × steps");
  card.append(element("div", { className: "head" }, title, readout));
  const controls = element("div", { className: "controls" });
  card.append(controls);
  const legend = surface(card, 34, drawLegend, "Colour scale");
  legend.canvas.tabIndex = -1;
  const plot = surface(card, 400, draw, "Heatmap. Arrow keys move, plus and minus zoom, 0 shows all rows.");
  const note = element("p", { className: "note" },
    "Click or arrow keys choose a step and a row; + and − (or double click) zoom into rows, Page Up and Down move, 0 shows all.");
  const empty = element("p", { className: "empty", hidden: true }, "No row matches the filter.");
  card.append(note, empty);
  const view = { table: null, rows: [], start: 0, count: 0, low: 0, high: 1, middles: null, image: null };

  const zoomOut = element("button", { type: "button", title: "Show more rows" }, "−");
  const zoomIn = element("button", { type: "button", title: "Show fewer rows" }, "+");
  const zoomAll = element("button", { type: "button" }, "All rows");
  zoomOut.setAttribute("aria-label", "Show more rows");
  zoomIn.setAttribute("aria-label", "Show fewer rows");
  buildControls(controls, state, data, [zoomOut, zoomIn, zoomAll]);
  zoomIn.addEventListener("click", () => zoom(0.5));
  zoomOut.addEventListener("click", () => zoom(2));
  zoomAll.addEventListener("click", () => zoom(Infinity));

  function refresh() {
    view.table = rollUp(data, state.metric, state.depth);
    const before = view.rows.length, zoomed = view.count;
    view.rows = arrange(view.table, state.order, state.filter, state.step);
    if (!view.rows.includes(state.row)) state.row = view.rows[0] ?? 0;
    const all = view.rows.length;
    view.count = before === all ? zoomed : all;  // another order keeps the zoom, around the chosen row
    view.start = Math.max(0, Math.min(all - view.count, Math.round(view.rows.indexOf(state.row) - view.count / 2)));
    view.middles = state.relative ? statistics(view.table).middle : null;
    view.image = null;
    [view.low, view.high] = colourRange();
    plot.height = FOOT + (view.count > 40 ? 620 : Math.max(90, view.count * 19));
    empty.hidden = view.count > 0;
    plot.canvas.hidden = legend.canvas.hidden = note.hidden = view.count === 0;
    plot.redraw();
    legend.redraw();
    tell();
  }

  const shown = (row, column) => {
    const value = columnValue(view.table, row, column);
    return view.middles && ordinary(value) ? value - view.middles[row] : value;
  };

  // From the 1st to the 99th of a hundred parts, so that one outlier does not take all the colours.
  function colourRange() {
    const sample = [], total = view.table.columns * view.rows.length, stride = Math.max(1, Math.floor(total / 40000));
    for (let i = 0; i < total; i += stride) {
      const value = shown(view.rows[Math.floor(i / view.table.columns)], i % view.table.columns);
      if (ordinary(value)) sample.push(value);
    }
    sample.sort((a, b) => a - b);
    if (!sample.length) return state.relative ? [-1, 1] : [-1, 0];
    const low = sample[Math.floor(0.01 * (sample.length - 1))], high = sample[Math.ceil(0.99 * (sample.length - 1))];
    if (!state.relative) return high - low < 0.2 ? [low - 0.1, high + 0.1] : [low, high];
    const far = Math.max(0.3, -low, high);
    return [-far, far];
  }

  function draw(pen, width, height) {
    pen.clearRect(0, 0, width, height);
    if (!view.count || !view.table.columns) return;
    const across = width - GUTTER - EDGE.right, down = height - FOOT, ratio = window.devicePixelRatio || 1;
    paint(pen, Math.max(1, Math.round(across * ratio)), Math.max(1, Math.round(down * ratio)), across, down);
    drawLabels(pen, down);
    const from = view.table.first[0], to = view.table.last[view.table.columns - 1];
    drawStepAxis(pen, step => GUTTER + (to === from ? 0.5 : (step - from) / (to - from)) * across, from, to, width, height);
    drawChosen(pen, across, down);
  }

  // Columns keep their place on the step axis, whatever number of steps each holds.
  function columnAt(share) {
    const from = view.table.first[0], to = view.table.last[view.table.columns - 1];
    return binOf(view.table.first, from + share * (to - from));
  }

  function paint(pen, wide, tall, across, down) {
    if (!view.image || view.image.width !== wide || view.image.height !== tall) view.image = rendered(wide, tall);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(view.image, GUTTER, 0, across, down);
  }

  function rendered(wide, tall) {
    const image = new ImageData(wide, tall), pixels = new Uint32Array(image.data.buffer);
    const special = { nothing: pack(rgbOf("nothing")), zero: pack(rgbOf("zero")), bad: pack(rgbOf("bad")) };
    const palette = (state.relative ? DIVERGING : SEQUENTIAL).map(pack), scale = 255 / (view.high - view.low);
    const columns = Array.from({ length: wide }, (_, px) => columnAt((px + 0.5) / wide));
    const line = new Uint32Array(view.table.columns);
    let painted = "";
    for (let py = 0; py < tall; py++) {
      const first = view.start + Math.floor(py * view.count / tall);
      const last = Math.max(first + 1, view.start + Math.floor((py + 1) * view.count / tall));
      if (painted !== `${first} ${last}`) {
        for (let c = 0; c < line.length; c++) line[c] = cellColour(first, last, c, palette, scale, special);
        painted = `${first} ${last}`;
      }
      for (let px = 0; px < wide; px++) pixels[py * wide + px] = line[columns[px]];
    }
    const buffer = element("canvas", { width: wide, height: tall });
    buffer.getContext("2d").putImageData(image, 0, 0);
    return buffer;
  }

  const pack = rgb => ((255 << 24) | (rgb[2] << 16) | (rgb[1] << 8) | rgb[0]) >>> 0;
  function cellColour(first, last, column, palette, scale, special) {
    let sum = 0, seen = 0, zero = false;
    for (let i = first; i < last; i++) {
      const value = shown(view.rows[i], column);
      if (value === BAD) return special.bad;
      if (value === ZERO) zero = true;
      else if (value !== NOTHING && value === value) { sum += value; seen++; }
    }
    if (!seen) return zero ? special.zero : special.nothing;
    return palette[Math.max(0, Math.min(255, Math.round((sum / seen - view.low) * scale)))];
  }

  function drawLabels(pen, down) {
    const each = down / view.count, names = view.table.names;
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    pen.fillStyle = colour("ink");
    if (each >= 11.5) {
      for (let i = 0; i < view.count; i++) label(names[view.rows[view.start + i]], (i + 0.5) * each);
    } else if (state.order === "model") drawGroups(pen, down, each);
    else drawSome(pen, down, each);
    function label(name, at) { pen.fillText(fitLeft(pen, name, GUTTER - 14), GUTTER - 8, at); }
  }

  // Too many rows to name: name the stretches that share leading components, as deep as there is room for.
  function drawGroups(pen, down, each) {
    let groups = [];
    for (let depth = 1; depth <= 8; depth++) {
      const finer = [];
      for (let i = 0; i < view.count; i++) {
        const parts = view.table.names[view.rows[view.start + i]].split(".");
        const prefix = parts.slice(0, Math.min(depth, Math.max(1, parts.length - 1))).join(".");
        const current = finer[finer.length - 1];
        if (current && current.prefix === prefix) current.end = i + 1; else finer.push({ prefix, start: i, end: i + 1 });
      }
      if (groups.length && finer.length * 14 > down) break;
      groups = finer;
    }
    if (groups.length < 8) return drawSome(pen, down, each);
    pen.strokeStyle = colour("soft");
    let free = -7;
    for (const { prefix, start, end } of groups) {
      const top = start * each, bottom = end * each, middle = (top + bottom) / 2;
      pen.beginPath();
      pen.moveTo(GUTTER - 3.5, top + 1);
      pen.lineTo(GUTTER - 3.5, Math.max(top + 2, bottom - 1));
      pen.stroke();
      if (middle - 6.5 < free) continue;
      pen.fillText(fitLeft(pen, prefix, GUTTER - 18), GUTTER - 9, Math.max(7, Math.min(down - 7, middle)));
      free = middle + 6.5;
    }
  }

  // Neither every row nor every group has room: names of rows at even distances.
  function drawSome(pen, down, each) {
    for (let at = 8; at < down; at += 22) {
      const name = view.table.names[view.rows[view.start + Math.floor(at / each)]];
      pen.fillText(fitLeft(pen, name, GUTTER - 14), GUTTER - 8, at);
    }
  }

  function drawChosen(pen, across, down) {
    const from = view.table.first[0], to = view.table.last[view.table.columns - 1];
    pen.strokeStyle = colour("ink");
    const x = Math.round(GUTTER + (to === from ? 0.5 : (state.step - from) / (to - from)) * across) + 0.5;
    pen.globalAlpha = 0.75;
    pen.beginPath(); pen.moveTo(x, 0); pen.lineTo(x, down); pen.stroke();
    const at = view.rows.indexOf(state.row) - view.start;
    if (at >= 0 && at < view.count) {
      const each = down / view.count;
      pen.strokeRect(GUTTER + 0.5, at * each + 0.5, across - 1, Math.max(2, each - 1));
    }
    pen.globalAlpha = 1;
  }

  function drawLegend(pen, width, height) {
    pen.clearRect(0, 0, width, height);
    const palette = state.relative ? DIVERGING : SEQUENTIAL, long = Math.min(300, width - GUTTER - 30);
    for (let i = 0; i < long; i++) {
      pen.fillStyle = `rgb(${palette[Math.floor(i / long * 256)].join(",")})`;
      pen.fillRect(GUTTER + i, 2, 1.5, 12);
    }
    pen.fillStyle = colour("soft");
    pen.textBaseline = "top";
    for (const at of logTicks(view.low, view.high, 5)) {
      pen.textAlign = "center";
      const text = state.relative ? `×${format(Number((10 ** at).toPrecision(2)))}` : decade(at);
      pen.fillText(text, GUTTER + (at - view.low) / (view.high - view.low) * long, 17);
    }
    pen.textAlign = "right";
    pen.fillText(state.relative ? `${METRICS[state.metric]} against its own median` : METRICS[state.metric], GUTTER - 8, 2);
    let x = GUTTER + long + 26;
    pen.textAlign = "left";
    for (const [name, text] of [["zero", "zero"], ["nothing", "not recorded"], ["bad", "inf or NaN"]]) {
      pen.fillStyle = colour(name);
      pen.fillRect(x, 2, 12, 12);
      pen.fillStyle = colour("soft");
      pen.fillText(text, x + 17, 2);
      x += 17 + pen.measureText(text).width + 18;
    }
  }

  function cellAt(event) {
    const box = plot.canvas.getBoundingClientRect(), across = plot.width - GUTTER - EDGE.right;
    const share = (event.clientX - box.left - GUTTER) / across;
    const at = Math.floor((event.clientY - box.top) / (plot.height - FOOT) * view.count);
    if (at < 0 || at >= view.count || share > 1) return null;
    return { row: view.rows[view.start + at], at: view.start + at, column: columnAt(Math.max(0, share)) };
  }

  function describe(row, column) {
    const value = columnValue(view.table, row, column), middle = middleOf(view.table, row);
    const against = ordinary(value) && !Number.isNaN(middle) ? `, ×${format(10 ** (value - middle))} its median` : "";
    return `${stepRange(view.table.first[column], view.table.last[column])}, ${METRICS[state.metric]} ${cellText(value)}${against}`;
  }

  function tell() {
    if (!view.count || !view.table.columns) { readout.textContent = ""; return; }
    readout.textContent = `${view.table.names[state.row]} · ${describe(state.row, binOf(view.table.first, state.step))}`;
  }

  function zoom(factor, around = view.rows.indexOf(state.row)) {
    const all = view.rows.length, count = Math.min(all, Math.max(Math.min(8, all), Math.round(view.count * factor)));
    const centre = around < 0 ? view.start + view.count / 2 : around;
    view.count = count;
    view.image = null;
    view.start = Math.max(0, Math.min(all - count, Math.round(centre - count / 2)));
    plot.redraw();
  }

  function moveRow(by) {
    const at = view.rows.indexOf(state.row), next = Math.max(0, Math.min(view.rows.length - 1, at + by));
    state.row = view.rows[next];
    if (next < view.start) view.start = next;
    if (next >= view.start + view.count) view.start = next - view.count + 1;
    view.image = null;
    plot.redraw();
    tell();
  }

  plot.canvas.addEventListener("pointermove", event => {
    const cell = cellAt(event);
    if (cell) showTip(event, `${view.table.names[cell.row]}\n${describe(cell.row, cell.column)}`); else hideTip();
  });
  plot.canvas.addEventListener("pointerleave", hideTip);
  plot.canvas.addEventListener("click", event => {
    const cell = cellAt(event);
    if (!cell) return;
    state.row = cell.row;
    state.choose(view.table.first[cell.column]);
  });
  plot.canvas.addEventListener("dblclick", event => { const cell = cellAt(event); if (cell) zoom(0.35, cell.at); });
  plot.canvas.addEventListener("keydown", event => {
    if (stepKeys(event, state, view.table)) return;
    const page = Math.max(1, Math.round(view.count * 0.8));
    const rows = { ArrowUp: -1, ArrowDown: 1, PageUp: -page, PageDown: page }[event.key];
    const factor = { "+": 0.5, "=": 0.5, "-": 2, 0: Infinity }[event.key];
    if (rows === undefined && factor === undefined) return;
    event.preventDefault();
    if (rows !== undefined) moveRow(rows); else zoom(factor);
  });
  state.watchers.push(kind => {
    if (kind === "rows") return refresh();
    if (kind === "theme") view.image = null;
    if (kind === "step" || kind === "theme") { plot.redraw(); legend.redraw(); tell(); }
  });
  refresh();
}

const METRICS = { rms: "rms of the gradient", max_abs: "largest magnitude", ratio: "update ratio" };

function choice(label, options, value, change) {
  const made = element("select");
  for (const [key, text] of options) made.append(element("option", { value: key, selected: key === value }, text));
  made.addEventListener("change", () => change(made.value));
  return element("label", {}, label, made);
}

function buildControls(place, state, data, buttons) {
  const depths = Math.max(...data.names.map(name => name.split(".").length - 1), 0);
  const levels = [["parameter", "every parameter"]];
  if (depths > 0) levels.push(["layer", "layer"]);
  for (let d = Math.min(depths, 4); d > 0; d--) levels.push([String(d), `depth ${d}`]);
  const set = key => value => { state[key] = value; state.announce("rows"); };
  if (Object.keys(data.metrics).length > 1) {
    const metrics = Object.keys(data.metrics).map(key => [key, METRICS[key]]);
    place.append(choice("value", metrics, state.metric, set("metric")));
  }
  place.append(choice("rows", levels, state.depth, set("depth")));
  const orders = [["model", "model order"], ["name", "name"], ["value", "value at the step"], ["change", "change from median"]];
  place.append(choice("sort", orders, state.order, set("order")));
  const colours = [["", "value"], ["yes", "against its own median"]];
  place.append(choice("colour", colours, "", value => { state.relative = value === "yes"; state.announce("rows"); }));
  const filter = element("input", { type: "search", placeholder: "name…" });
  filter.addEventListener("input", () => { state.filter = filter.value; state.announce("rows"); });
  place.append(element("label", {}, "filter", filter), ...buttons);
}
