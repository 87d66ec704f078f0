// Numbers as text, ticks, colours, and canvases that fit their place.

function format(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}
const integer = value => Math.round(value).toLocaleString("en");
const percent = value => (Number.isNaN(value) ? "–" : `${Number((100 * value).toPrecision(3))} %`);
const stepRange = (first, last) => (first === last ? `step ${integer(first)}` : `steps ${integer(first)}–${integer(last)}`);

function cellText(value) {
  if (value === NOTHING) return "not recorded";
  if (value === ZERO) return "0";
  return value === BAD ? "inf or NaN" : format(10 ** value);
}

function ticks(low, high, count) {
  const span = high - low || 1, raw = span / Math.max(count, 1), power = 10 ** Math.floor(Math.log10(raw));
  const unit = [1, 2, 5, 10].find(m => m * power >= raw) * power, found = [];
  for (let i = Math.ceil(low / unit - 1e-9); i * unit <= high + unit * 1e-9; i++) found.push(i * unit);
  return found;
}

// Ticks of a log axis, in log10: decades, thinned, or 1-2-5 where there are few decades.
function logTicks(low, high, count) {
  const found = [], stride = Math.max(1, Math.ceil((high - low) / count));
  if (high - low >= 2) {
    for (let e = Math.ceil(low / stride) * stride; e <= high; e += stride) found.push(e);
    return found;
  }
  for (let e = Math.floor(low); e <= high; e++) {
    for (const m of [1, 2, 5]) {
      const at = e + Math.log10(m);
      if (at >= low && at <= high) found.push(at);
    }
  }
  return found.length > 1 ? found : ticks(10 ** low, 10 ** high, 4).filter(v => v > 0).map(Math.log10);
}

const decade = exponent => {
  const nearest = Math.round(exponent);
  if (Math.abs(exponent - nearest) > 1e-6 || Math.abs(nearest) < 4) return format(10 ** exponent);
  return `1e${nearest}`;
};

// Sequential colours by OKLCH: lightness rises evenly, hue runs from violet over teal to yellow.
function oklch(lightness, chroma, hue) {
  const a = chroma * Math.cos(hue * Math.PI / 180), b = chroma * Math.sin(hue * Math.PI / 180);
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3;
  const linear = [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.7076147010 * s,
  ];
  return linear.map(v => {
    const c = Math.min(1, Math.max(0, v));
    return Math.round(255 * (c <= 0.0031308 ? 12.92 * c : 1.055 * c ** (1 / 2.4) - 0.055));
  });
}
const SEQUENTIAL = Array.from({ length: 256 }, (_, i) => {
  const t = i / 255;
  return oklch(0.24 + 0.70 * t, 0.105 + 0.06 * Math.sin(Math.PI * t), 300 - 195 * t);
});
// Two-sided: blue below, light in the middle, red above.
const DIVERGING = Array.from({ length: 256 }, (_, i) => {
  const t = (i - 127.5) / 127.5, far = Math.abs(t);
  return oklch(0.94 - 0.50 * far, 0.19 * far, t < 0 ? 255 : 25);
});

const colour = name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const rgbOf = name => {
  const hex = colour(name);
  return [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16));
};

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value; else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

// A canvas as wide as its place, drawn again when that, the theme or the data changes.
function surface(host, height, draw, label) {
  const canvas = element("canvas", { tabIndex: 0, "aria-label": label });
  host.append(canvas);
  const made = { canvas, width: 0, height, redraw: () => { waiting ||= requestAnimationFrame(paint); } };
  let waiting = 0;  // several changes before the next frame are drawn once
  function paint() {
    waiting = 0;
    const width = canvas.clientWidth, ratio = window.devicePixelRatio || 1;
    if (!width) return;
    made.width = width;
    canvas.style.height = `${made.height}px`;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(made.height * ratio);
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.font = '11.5px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif';
    draw(pen, width, made.height);
  }
  new ResizeObserver(() => { if (canvas.clientWidth !== made.width) made.redraw(); }).observe(canvas);
  return made;
}

// Text on top of curves, with a rim in the colour of the card.
function rimmed(pen, text, x, y) {
  pen.lineWidth = 4;
  pen.lineJoin = "round";
  pen.strokeStyle = colour("card");
  pen.strokeText(text, x, y);
  pen.lineWidth = 1;
  pen.fillText(text, x, y);
}

// Text that fits: the end of a name says more than its beginning.
function fitLeft(pen, text, room) {
  if (pen.measureText(text).width <= room) return text;
  let low = 0, high = text.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (pen.measureText(`…${text.slice(middle)}`).width <= room) high = middle; else low = middle + 1;
  }
  return `…${text.slice(low)}`;
}

const tip = element("div", { className: "tip", hidden: true });
function showTip(event, text) {
  tip.textContent = text;
  tip.hidden = false;
  const right = event.clientX + 14 + tip.offsetWidth > window.innerWidth;
  tip.style.left = `${Math.max(4, right ? event.clientX - 14 - tip.offsetWidth : event.clientX + 14)}px`;
  tip.style.top = `${Math.max(4, Math.min(event.clientY + 16, window.innerHeight - tip.offsetHeight - 6))}px`;
}
const hideTip = () => { tip.hidden = true; };
