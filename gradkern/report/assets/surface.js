// `Surface`, a canvas of the page, and parts of the heatmap: names of blocks, tags of findings, special colours.

// A canvas as wide as its container. It is drawn again when the width, the theme or the data changes.
class Surface {
  // heightOf: from a width to a height, in pixels
  constructor(host, heightOf, draw, label) {
    this.canvas = element("canvas", { tabIndex: 0, "aria-label": label });
    Object.assign(this, { width: 0, height: 0, heightOf, draw, waiting: 0 });
    host.append(this.canvas);
    new ResizeObserver(() => { if (this.canvas.clientWidth !== this.width) this.redraw(); }).observe(this.canvas);
  }

  // Several changes before the next frame are drawn once.
  redraw() { this.waiting ||= requestAnimationFrame(() => this.paint()); }

  paint() {
    this.waiting = 0;
    const width = this.canvas.clientWidth, ratio = devicePixelRatio || 1;
    if (!width) return;
    Object.assign(this, { width, height: this.heightOf(width) });
    this.canvas.style.height = `${this.height}px`;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(this.height * ratio);
    const pen = this.canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.font = FONT;
    pen.clearRect(0, 0, width, this.height);
    this.draw(pen, width, this.height);
  }
}

function drawTag(pen, text, ink, left, top, least, right) {
  const wide = pen.measureText(text).width + 10, x = Math.max(least, Math.min(left, right - wide));
  pen.fillStyle = ink;
  pen.fillRect(x, top, wide, 16);
  pen.fillStyle = colour("card");
  pen.textAlign = "left";
  pen.textBaseline = "middle";
  pen.fillText(text, x + 5, top + 8.5);
}

// Shorten a text that is too wide to its end.
function fitLeft(pen, text, width) {
  let shown = text;
  while (shown.length > 2 && pen.measureText(shown).width > width) shown = `…${shown.slice(2)}`;
  return shown;
}

const pack = rgb => ((255 << 24) | (rgb[2] << 16) | (rgb[1] << 8) | rgb[0]) >>> 0;

function drawStretches(pen, groups, down, each, gutter) {
  pen.strokeStyle = colour("soft");
  let free = -7;
  for (const { prefix, start, end } of groups) {
    const top = start * each, bottom = end * each, middle = (top + bottom) / 2;
    pen.strokeRect(gutter - 3.5, top + 1, 0, Math.max(1, bottom - top - 2));
    if (middle - 6.5 < free) continue;
    pen.fillText(fitLeft(pen, prefix, gutter - 18), gutter - 9, Math.max(7, Math.min(down - 7, middle)));
    free = middle + 6.5;
  }
}

function drawSpecials(pen, x, y) {
  pen.textAlign = "left";
  for (const [name, text] of [["zero", "zero"], ["nothing", "not recorded"], ["bad", "inf or NaN"]]) {
    pen.fillStyle = colour(name);
    pen.fillRect(x, y, 12, 12);
    pen.fillStyle = colour("soft");
    pen.fillText(text, x + 17, y);
    x += 17 + pen.measureText(text).width + 18;
  }
}
