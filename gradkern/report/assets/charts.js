// Line charts over steps, by uPlot: one zoom and one cursor for all of them.

const FONT = '11.5px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif';
const SEVERITY = { severe: "red", warning: "orange", info: "soft" };

// uPlot draws null as a gap. A logarithmic axis cannot show values of 0 and below.
const drawable = (values, log) => Array.from(values, v => (Number.isFinite(v) && (!log || v > 0) ? v : null));

function axis(options = {}) {
  return {
    stroke: () => colour("soft"), font: FONT, ticks: { show: false },
    grid: { stroke: () => colour("grid"), width: 1 }, ...options,
  };
}

// Common to all charts: the size of the container, redrawing on a change of theme.
function plotIn(card, state, options, values) {
  const host = element("div", { className: "plot" });
  card.append(host);
  const plot = new uPlot({ width: 300, padding: [8, 28, 0, 0], ...options }, values, host);
  const fit = () => {
    if (host.clientWidth && host.clientWidth !== plot.width) plot.setSize({ width: host.clientWidth, height: options.height });
  };
  new ResizeObserver(() => requestAnimationFrame(fit)).observe(host);
  state.watch(kind => { if (kind === "theme" || kind === "step") plot.redraw(false); });
  return plot;
}

// curves: [{label, colour, values, low, high, dash}]. A curve with low and high gets a band.
function seriesOf(curves, log, show) {
  const series = [{ label: "step", value: (_, v) => (v === null ? "–" : integer(v)) }], values = [], bands = [];
  for (const curve of curves) {
    const stroke = () => colour(curve.colour);
    const line = { label: curve.label, stroke, width: 1.5, dash: curve.dash, points: { size: 4 }, value: (_, v) => show(v) };
    if (curve.low) {
      const at = series.length, edge = { stroke: null, width: 0, points: { show: false }, value: (_, v) => show(v) };
      series.push({ ...edge, label: "highest" }, { ...edge, label: "lowest" });
      values.push(drawable(curve.high, log), drawable(curve.low, log));
      bands.push({ series: [at, at + 1], fill: () => `${colour(curve.colour)}33` });
    }
    series.push(line);
    values.push(drawable(curve.values, log));
  }
  return { series, values, bands };
}

// options: title, curves, log, unit, threshold {value, label}, marks, range, height, note, empty
function stepChart(card, state, bins, options) {
  heading(card, options.title);
  const log = Boolean(options.log), show = options.unit === "%" ? percent : format;
  const { series, values, bands } = seriesOf(options.curves, log, show);
  if (!values.some(column => column.some(v => v !== null))) {
    card.append(element("p", { className: "empty" }, options.empty));
    return;
  }
  const steps = bins.first.map((first, i) => (first + bins.last[i]) / 2);
  const plot = plotIn(card, state, {
    height: options.height || 240, series, bands,
    scales: { x: { time: false, range: () => state.extent() },
      y: { distr: log ? 3 : 1, ...(options.range ? { range: options.range } : {}) } },
    axes: [axis({ size: 28, values: (_, at) => at.map(v => (Number.isInteger(v) ? integer(v) : "")) }),
      axis({ size: 62, values: (_, at) => at.map(v => (v === null ? "" : log ? decade(Math.log10(v)) : show(v))) })],
    cursor: { sync: { key: "steps" }, drag: { x: true, y: false, setScale: false }, points: { size: 6 } },
    hooks: {
      drawClear: [u => drawMarks(u, bins, options.marks || [])],
      draw: [u => drawLines(u, state, options.threshold)],
      setCursor: [u => state.hover(u.cursor.left >= 0 ? u.posToVal(u.cursor.left, "x") : null)],
      setSelect: [u => zoomToSelection(u, state)],
    },
  }, [steps, ...values]);
  follow(plot, state, bins, steps, options.title);
  if (options.note) card.append(element("p", { className: "note" }, options.note));
}

// Click and arrow keys choose a step; a zoom anywhere is a zoom here.
function follow(plot, state, bins, steps, title) {
  let pressed = null;
  plot.over.tabIndex = 0;
  plot.over.setAttribute("aria-label", `${title}. Drag to zoom, double-click to show all steps, use the arrow keys to choose a step.`);
  plot.over.addEventListener("pointerdown", event => { pressed = event.clientX; });
  plot.over.addEventListener("click", event => {
    if (Math.abs(event.clientX - pressed) < 4) state.choose(bins.first[binOf(steps, plot.posToVal(plot.cursor.left, "x"))]);
  });
  plot.over.addEventListener("keydown", event => stepKeys(event, state, bins));
  plot.over.addEventListener("dblclick", () => state.zoom(null));
  state.watch(kind => {
    if (kind !== "zoom") return;
    const [min, max] = state.extent();
    plot.setScale("x", { min, max });
  });
}

function zoomToSelection(u, state) {
  const { left, width } = u.select;
  if (width < 4) return;
  u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
  state.zoom([u.posToVal(left, "x"), u.posToVal(left + width, "x")]);
}

// marks: [{at, colour, full}]: marked bins, at full height or at the bottom.
function drawMarks(u, bins, marks) {
  const { ctx, bbox } = u, ratio = devicePixelRatio;
  ctx.save();
  for (const mark of marks) {
    ctx.fillStyle = colour(mark.colour);
    bins.first.forEach((first, i) => {
      if (!(mark.at[i] > 0)) return;
      const left = u.valToPos(first, "x", true), right = u.valToPos(bins.last[i], "x", true);
      if (right < bbox.left || left > bbox.left + bbox.width) return;
      const wide = Math.max(2 * ratio, right - left), tall = mark.full ? bbox.height : 5 * ratio;
      ctx.globalAlpha = mark.full ? 0.35 : 0.25 + 0.75 * Math.min(1, mark.at[i]);
      ctx.fillRect(left, bbox.top + bbox.height - tall, wide, tall);
    });
  }
  ctx.restore();
}

// The chosen step, the first step of every finding, events such as rollbacks, and the threshold.
function drawLines(u, state, threshold) {
  const { ctx, bbox } = u;
  ctx.save();
  const upright = (step, ink, dash) => {
    const x = Math.round(u.valToPos(step, "x", true)) + 0.5;
    if (x < bbox.left || x > bbox.left + bbox.width) return;
    stroke(ctx, ink, dash, x, bbox.top, x, bbox.top + bbox.height);
  };
  for (const turn of state.turns) upright(turn.step, SEVERITY[turn.severity], [1, 3]);
  for (const finding of state.findings) upright(finding.first_step, SEVERITY[finding.severity], [3, 3]);
  upright(state.step, "ink", []);
  if (threshold) drawThreshold(u, threshold);
  ctx.restore();
}

function drawThreshold(u, threshold) {
  const { ctx, bbox } = u, y = Math.round(u.valToPos(threshold.value, "y", true)) + 0.5;
  if (!(y >= bbox.top && y <= bbox.top + bbox.height)) return;
  stroke(ctx, "orange", [6, 4], bbox.left, y, bbox.left + bbox.width, y);
  ctx.fillStyle = colour("orange");
  ctx.font = FONT.replace("11.5px", `${11.5 * devicePixelRatio}px`);
  ctx.textAlign = "right";
  ctx.fillText(threshold.label, bbox.left + bbox.width - 4, y - 4 * devicePixelRatio);
}

function stroke(ctx, ink, dash, x0, y0, x1, y1) {
  ctx.strokeStyle = colour(ink);
  ctx.lineWidth = devicePixelRatio;
  ctx.setLineDash(dash.map(d => d * devicePixelRatio));
  ctx.beginPath();
  ctx.moveTo(x0, y0);
  ctx.lineTo(x1, y1);
  ctx.stroke();
}

// Left and Right choose the neighbouring bin, with Shift ten bins away; Home and End the first and the last.
function stepKeys(event, state, bins) {
  const last = bins.first.length - 1, at = binOf(bins.first, state.step), stride = event.shiftKey ? 10 : 1;
  const target = { ArrowLeft: at - stride, ArrowRight: at + stride, Home: 0, End: last }[event.key];
  if (target === undefined || event.ctrlKey || event.metaKey || event.altKey) return false;
  event.preventDefault();
  state.choose(bins.first[Math.min(last, Math.max(0, target))]);
  return true;
}
