// Numbers as text, ticks of an axis, and the colours of the heatmap.

function format(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}
const integer = value => Math.round(value).toLocaleString("en");
const percent = value => (value === null || Number.isNaN(value) ? "–" : `${Number((100 * value).toPrecision(3))} %`);
const stepRange = (first, last) => (first === last ? `step ${integer(first)}` : `steps ${integer(first)}–${integer(last)}`);
const sentence = name => name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");

function cellText(value) {
  if (value === NOTHING) return "not recorded";
  if (value === ZERO) return "0";
  return value === BAD ? "inf or NaN" : format(10 ** value);
}

// A power of ten, as plain digits if they are short.
function decade(exponent) {
  const nearest = Math.round(exponent);
  return Math.abs(exponent - nearest) > 1e-6 || Math.abs(nearest) < 4 ? format(10 ** exponent) : `1e${nearest}`;
}

// At most `count` values between two limits, at multiples of 1, 2 or 5 times a power of ten.
function ticks(low, high, count) {
  const raw = (high - low || 1) / Math.max(count, 1), power = 10 ** Math.floor(Math.log10(raw));
  const unit = [1, 2, 5, 10].find(m => m * power >= raw) * power, found = [];
  for (let i = Math.ceil(low / unit - 1e-9); i * unit <= high + unit * 1e-9; i++) found.push(i * unit);
  return found;
}

// Sequential colours in OKLCH: lightness rises evenly, hue runs from violet over teal to yellow.
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
