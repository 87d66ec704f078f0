// Magnitudes of the gradient's elements, as powers of two, at the chosen step. Bars by uPlot.

const FORMATS = [["fp16", -25], ["fp8 e5m2", -17], ["fp8 e4m3", -10]];  // log2 of what just rounds to zero

function histogram(card, state, data) {
  const readout = heading(card, "Magnitudes of elements"), recorded = data.histogram;
  if (!recorded) {
    card.append(element("p", { className: "empty" },
      "No histograms were recorded. To record them, use GradMonitor(…, histogram_every=100)."));
    return;
  }
  const exponents = recorded.shares[0].map((_, i) => recorded.low + i);
  const shares = () => recorded.shares[binOf(recorded.first, state.step)];
  const plot = plotIn(card, state, {
    height: 240,
    series: [{ label: "magnitude", value: (_, e) => (e === null ? "–" : `2^${e}`) },
      { label: "share", stroke: () => colour("blue"), fill: () => `${colour("blue")}aa`, paths: uPlot.paths.bars({ size: [0.9] }),
        points: { show: false }, value: (_, v) => percent(v) }],
    scales: { x: { time: false, range: [recorded.low - 0.5, recorded.low + exponents.length - 0.5] }, y: { range: (_, low, high) => [0, (high || 1) * 1.1] } },
    axes: [axis({ size: 28, values: (_, at) => at.map(e => (Number.isInteger(e) ? `2^${e}` : "")) }), axis({ size: 62, values: (_, at) => at.map(percent) })],
    cursor: { drag: { x: false, y: false } },
    hooks: { draw: [u => drawFormats(u)] },
  }, [exponents, shares()]);
  card.append(element("p", { className: "note" }, recorded.note));
  const tell = () => {
    const i = binOf(recorded.first, state.step);
    const lost = Object.entries(recorded.underflow).map(([name, of]) => `${name} ${percent(of[i] ?? NaN)}`);
    readout.textContent = `step ${integer(recorded.first[i])}${lost.length ? ` · underflow: ${lost.join(", ")}` : ""}`;
  };
  state.watch(kind => { if (kind === "step") { plot.setData([exponents, shares()]); tell(); } });
  tell();
}

// Below each line, magnitudes round to zero in that format.
function drawFormats(u) {
  const { ctx, bbox } = u, ratio = devicePixelRatio;
  ctx.save();
  FORMATS.forEach(([name, exponent], i) => {
    const x = Math.round(u.valToPos(exponent - 0.5, "x", true)) + 0.5;
    if (x < bbox.left || x > bbox.left + bbox.width) return;
    stroke(ctx, "orange", [4, 3], x, bbox.top, x, bbox.top + bbox.height);
    ctx.fillStyle = colour("orange");
    ctx.font = FONT.replace("11.5px", `${11.5 * ratio}px`);
    ctx.textAlign = x > bbox.left + bbox.width - 90 * ratio ? "right" : "left";
    ctx.fillText(name, x + (ctx.textAlign === "left" ? 4 : -4) * ratio, bbox.top + (12 + i * 13) * ratio);
  });
  ctx.restore();
}
