// Curves over steps: a middle line, a band from lowest to highest in a bin, marks, the chosen step.

const EDGE = { left: 62, right: 14, top: 8, bottom: 24 };

function valueRange(curves, extra, log) {
  let low = Infinity, high = -Infinity;
  const take = v => {
    if (!Number.isFinite(v) || (log && v <= 0)) return;
    const at = log ? Math.log10(v) : v;
    low = Math.min(low, at);
    high = Math.max(high, at);
  };
  for (const curve of curves) for (const part of [curve.mid, curve.low, curve.high]) if (part) part.forEach(take);
  if (low > high) extra.forEach(take);
  else for (const v of extra) {  // a far-off threshold must not flatten the curve
    const at = log ? Math.log10(v) : v;
    if (Number.isFinite(at) && at > low - 2 * (high - low || 1) && at < high + 2 * (high - low || 1)) take(v);
  }
  if (low > high) return null;
  const room = (high - low) * 0.06 || (log ? 0.3 : Math.abs(low) * 0.1 || 1);
  return [low - room, high + room];
}

// options: title, curves [{label, colour, mid, low, high}], log, threshold {value, label}, marks, range, unit, note
function curveChart(card, state, bins, options) {
  const readout = element("span", { className: "readout" });
  card.append(element("div", { className: "head" }, element("h2", {}, options.title), readout));
  const range = options.range || valueRange(options.curves, options.threshold ? [options.threshold.value] : [], options.log);
  if (!range) {
    readout.remove();
    card.append(element("p", { className: "empty" }, options.empty));
    return;
  }
  const from = bins.first[0], to = bins.last[bins.last.length - 1];
  const plot = surface(card, options.height || 220, draw, `${options.title}. Arrow keys choose a step.`);
  if (options.note) card.append(element("p", { className: "note" }, options.note));
  let hovered = null;
  const x = step => EDGE.left + (to === from ? 0.5 : (step - from) / (to - from)) * (plot.width - EDGE.left - EDGE.right);
  const y = at => EDGE.top + (1 - (at - range[0]) / (range[1] - range[0])) * (plot.height - EDGE.top - EDGE.bottom);
  const yOf = v => (options.log ? (v > 0 ? y(Math.max(range[0], Math.log10(v))) : y(range[0])) : y(v));

  function draw(pen, width, height) {
    pen.clearRect(0, 0, width, height);
    drawAxes(pen, width, height);
    for (const mark of options.marks || []) drawMark(pen, mark, height);
    if (options.threshold) drawThreshold(pen, width);
    for (const curve of options.curves) drawCurve(pen, curve);
    drawCursor(pen, height);
    if (options.threshold) nameThreshold(pen);
    if (options.curves.length > 1) drawLegend(pen, width);
  }

  function drawAxes(pen, width, height) {
    pen.strokeStyle = colour("grid");
    pen.fillStyle = colour("soft");
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    const rows = options.log ? logTicks(range[0], range[1], 6) : ticks(range[0], range[1], 5).filter(at => options.unit !== "%" || at <= 1);
    for (const at of rows) {
      const line = Math.round(y(at)) + 0.5;
      pen.beginPath(); pen.moveTo(EDGE.left, line); pen.lineTo(width - EDGE.right, line); pen.stroke();
      pen.fillText(options.log ? decade(at) : options.unit === "%" ? percent(at) : format(at), EDGE.left - 7, line);
    }
    drawStepAxis(pen, x, from, to, width, height);
  }

  function drawMark(pen, mark, height) {
    pen.fillStyle = colour(mark.colour);
    mark.at.forEach((share, i) => {
      if (!(share > 0)) return;
      const left = x(bins.first[i]), wide = Math.max(mark.full ? 2 : 1.2, x(bins.last[i]) - left);
      pen.globalAlpha = mark.full ? 0.35 : 0.25 + 0.75 * Math.min(1, share);
      if (mark.full) pen.fillRect(left, EDGE.top, wide, height - EDGE.top - EDGE.bottom);
      else pen.fillRect(left, height - EDGE.bottom - 5, wide, 5);
    });
    pen.globalAlpha = 1;
  }

  function drawThreshold(pen, width) {
    const line = yOf(options.threshold.value);
    if (line < EDGE.top || line > plot.height - EDGE.bottom) return;
    pen.strokeStyle = colour("orange");
    pen.setLineDash([6, 4]);
    pen.beginPath(); pen.moveTo(EDGE.left, line); pen.lineTo(width - EDGE.right, line); pen.stroke();
    pen.setLineDash([]);
  }

  function nameThreshold(pen) {
    const line = yOf(options.threshold.value);
    if (line < EDGE.top || line > plot.height - EDGE.bottom) return;
    pen.fillStyle = colour("orange");
    pen.textAlign = "left";
    pen.textBaseline = line < 30 ? "top" : "bottom";
    rimmed(pen, options.threshold.label, EDGE.left + 5, line - 2);
  }

  const place = i => x((bins.first[i] + bins.last[i]) / 2);
  function drawCurve(pen, curve) {
    if (curve.low && curve.high) {
      pen.fillStyle = colour(curve.colour);
      pen.globalAlpha = 0.2;
      for (const [start, end] of runs(curve.low)) {
        pen.beginPath();
        for (let i = start; i < end; i++) pen.lineTo(place(i), yOf(curve.high[i]));
        for (let i = end - 1; i >= start; i--) pen.lineTo(place(i), yOf(curve.low[i]));
        pen.fill();
      }
      pen.globalAlpha = 1;
    }
    pen.strokeStyle = pen.fillStyle = colour(curve.colour);
    pen.lineWidth = 1.5;
    pen.setLineDash(curve.dash || []);
    for (const [start, end] of runs(curve.mid)) {
      pen.beginPath();
      for (let i = start; i < end; i++) pen.lineTo(place(i), yOf(curve.mid[i]));
      pen.stroke();
      if (end - start === 1) { pen.beginPath(); pen.arc(place(start), yOf(curve.mid[start]), 2.5, 0, 7); pen.fill(); }
    }
    pen.setLineDash([]);
    pen.lineWidth = 1;
  }

  // Stretches of finite values; where the value is inf or NaN the line is broken.
  function runs(values) {
    const found = [];
    for (let i = 0; i < values.length; i++) {
      if (!Number.isFinite(values[i])) continue;
      const start = i;
      while (i < values.length && Number.isFinite(values[i])) i++;
      found.push([start, i]);
    }
    return found;
  }

  function drawCursor(pen, height) {
    for (const [step, ink] of [[state.step, "ink"], [hovered, "soft"]]) {
      if (step === null) continue;
      pen.strokeStyle = colour(ink);
      const at = Math.round(x(step)) + 0.5;
      pen.beginPath(); pen.moveTo(at, EDGE.top); pen.lineTo(at, height - EDGE.bottom); pen.stroke();
    }
  }

  function drawLegend(pen, width) {
    let right = width - EDGE.right - 6;
    const wide = options.curves.reduce((all, curve) => all + pen.measureText(curve.label).width + 37, -10);
    pen.fillStyle = colour("card");
    pen.globalAlpha = 0.85;
    pen.fillRect(right - wide - 4, EDGE.top, wide + 8, 18);
    pen.globalAlpha = 1;
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const curve of [...options.curves].reverse()) {
      pen.fillStyle = colour("ink");
      pen.fillText(curve.label, right, EDGE.top + 9);
      right -= pen.measureText(curve.label).width + 5;
      pen.strokeStyle = colour(curve.colour);
      pen.lineWidth = 2;
      pen.setLineDash(curve.dash || []);
      pen.beginPath(); pen.moveTo(right - 18, EDGE.top + 9); pen.lineTo(right, EDGE.top + 9); pen.stroke();
      pen.setLineDash([]);
      pen.lineWidth = 1;
      right -= 32;
    }
  }

  function tell() {
    const i = binOf(bins.first, hovered === null ? state.step : hovered);
    const parts = options.curves.map(curve => {
      const show = options.unit === "%" ? percent : format;
      const spread = curve.low && curve.high && curve.low[i] !== curve.high[i]
        ? ` (${show(curve.low[i])} … ${show(curve.high[i])})` : "";
      return `${curve.label} ${show(curve.mid[i])}${spread}`;
    });
    for (const mark of options.marks || []) if (mark.at[i] > 0) parts.push(mark.tell(i));
    readout.textContent = `${stepRange(bins.first[i], bins.last[i])} · ${parts.join(" · ")}`;
  }

  function stepAt(event) {
    const box = plot.canvas.getBoundingClientRect(), across = plot.width - EDGE.left - EDGE.right;
    const share = Math.min(1, Math.max(0, (event.clientX - box.left - EDGE.left) / across));
    const guess = from + share * (to - from);
    return bins.first[binOf(bins.first, guess)];
  }
  plot.canvas.addEventListener("pointermove", event => { hovered = stepAt(event); plot.redraw(); tell(); });
  plot.canvas.addEventListener("pointerleave", () => { hovered = null; plot.redraw(); tell(); });
  plot.canvas.addEventListener("click", event => state.choose(stepAt(event)));
  plot.canvas.addEventListener("keydown", event => stepKeys(event, state, bins));
  state.watchers.push(kind => { if (kind === "step" || kind === "theme") { plot.redraw(); tell(); } });
  tell();
}

function drawStepAxis(pen, x, from, to, width, height) {
  pen.fillStyle = colour("soft");
  pen.textBaseline = "top";
  const marks = to === from ? [from] : ticks(from, to, Math.max(2, Math.floor(width / 130))).filter(Number.isInteger);
  for (const step of marks) {
    pen.textAlign = x(step) > width - 50 ? "right" : "center";
    pen.fillText(integer(step), x(step), height - EDGE.bottom + 6);
  }
}

// Left and right choose the neighbouring bin, with Shift ten bins; Home and End the ends.
function stepKeys(event, state, bins) {
  const last = bins.first.length - 1, at = binOf(bins.first, state.step), stride = event.shiftKey ? 10 : 1;
  const target = { ArrowLeft: at - stride, ArrowRight: at + stride, Home: 0, End: last }[event.key];
  if (target === undefined || event.ctrlKey || event.metaKey || event.altKey) return false;
  event.preventDefault();
  state.choose(bins.first[Math.min(last, Math.max(0, target))]);
  return true;
}
