// Magnitudes of the gradient's elements, as powers of two, at the chosen step.

const FORMATS = [["fp16", -25], ["fp8 e5m2", -17], ["fp8 e4m3", -10]];  // log2 of what just rounds to zero

function histogram(card, state, data) {
  const readout = element("span", { className: "readout" }), recorded = data.histogram;
  card.append(element("div", { className: "head" }, element("h2", {}, "Magnitudes of elements"), readout));
  if (!recorded) {
    card.append(element("p", { className: "empty" },
      "No histograms were recorded. They are optional: GradMonitor(…, histogram_every=100)."));
    return;
  }
  const plot = surface(card, 220, draw, "Histogram of magnitudes. Arrow keys choose a step.");
  card.append(element("p", { className: "note" }, recorded.note));
  const top = Math.max(...recorded.shares.flat(), 1e-9), low = recorded.low, count = recorded.shares[0].length;
  const x = exponent => EDGE.left + (exponent - low) / count * (plot.width - EDGE.left - EDGE.right);
  const y = share => EDGE.top + (1 - share / (top * 1.12)) * (plot.height - EDGE.top - EDGE.bottom);

  function draw(pen, width, height) {
    pen.clearRect(0, 0, width, height);
    const shares = recorded.shares[binOf(recorded.first, state.step)];
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    for (const at of ticks(0, top, 4)) {
      const line = Math.round(y(at)) + 0.5;
      pen.strokeStyle = colour("grid");
      pen.beginPath(); pen.moveTo(EDGE.left, line); pen.lineTo(width - EDGE.right, line); pen.stroke();
      pen.fillStyle = colour("soft");
      pen.fillText(percent(at), EDGE.left - 7, line);
    }
    pen.fillStyle = colour("blue");
    shares.forEach((share, i) => pen.fillRect(x(low + i) + 0.5, y(share), Math.max(1, x(low + i + 1) - x(low + i) - 1), y(0) - y(share)));
    pen.textBaseline = "top";
    pen.textAlign = "center";
    pen.fillStyle = colour("soft");
    for (const at of ticks(low, low + count, Math.floor(width / 70)).filter(Number.isInteger)) pen.fillText(`2^${at}`, x(at), height - EDGE.bottom + 6);
    drawFormats(pen);
  }

  function drawFormats(pen) {
    pen.fillStyle = colour("orange");
    FORMATS.forEach(([name, exponent], i) => {
      if (exponent < low || exponent > low + count) return;
      const at = Math.round(x(exponent)) + 0.5;
      pen.strokeStyle = colour("orange");
      pen.setLineDash([4, 3]);
      pen.beginPath(); pen.moveTo(at, EDGE.top); pen.lineTo(at, y(0)); pen.stroke();
      pen.setLineDash([]);
      pen.textAlign = at > plot.width - 90 ? "right" : "left";
      rimmed(pen, name, at + (pen.textAlign === "left" ? 4 : -4), EDGE.top + i * 13);
    });
  }

  function tell() {
    const i = binOf(recorded.first, state.step);
    const lost = Object.entries(recorded.underflow).map(([name, shares]) => `${name} ${percent(shares[i] ?? NaN)}`);
    readout.textContent = `step ${integer(recorded.first[i])}${lost.length ? ` · underflow: ${lost.join(", ")}` : ""}`;
  }
  plot.canvas.addEventListener("keydown", event => stepKeys(event, state, recorded));
  state.watchers.push(() => { plot.redraw(); tell(); });
  tell();
}
