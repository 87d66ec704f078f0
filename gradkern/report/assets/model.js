// The data of the page: decoding, roll-up to layers, ordering. No drawing here.

const numbers = values => values.map(v => (v === null ? NaN : typeof v === "string" ? Number(v) : v));

// Codes of a matrix: 0 nothing recorded, 1 zero, 65535 inf or NaN, others linear in log10 between lo and hi.
const [NOTHING, ZERO, BAD] = [-3e38, -2e38, 2e38].map(Math.fround);  // as a Float32Array keeps them
const ordinary = v => v > -1e38 && v < 1e38;

function decodeMatrix(packed, rows) {
  const bytes = Uint8Array.from(atob(packed.data), c => c.charCodeAt(0));
  const columns = packed.first.length, values = new Float32Array(rows * columns);
  const scale = (packed.hi - packed.lo) / 65532;
  for (let i = 0; i < values.length; i++) {
    const code = bytes[2 * i] | (bytes[2 * i + 1] << 8);
    values[i] = code === 0 ? NOTHING : code === 1 ? ZERO : code === 65535 ? BAD : packed.lo + (code - 2) * scale;
  }
  return { first: packed.first, last: packed.last, columns, values };
}

function decode(text) {
  const data = JSON.parse(text);
  for (const key of Object.keys(data.series)) data.series[key] = numbers(data.series[key]);
  for (const key of ["rate", "coef"]) data.clipping[key] = numbers(data.clipping[key]);
  data.metrics = {};
  for (const key of Object.keys(data.matrices)) {
    data.metrics[key] = decodeMatrix(data.matrices[key], data.names.length);
  }
  delete data.matrices;
  return data;
}

// Index of the bin that holds a step: the last one that begins at or before it.
function binOf(first, step) {
  let low = 0, high = first.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (first[middle] <= step) low = middle; else high = middle - 1;
  }
  return low;
}

// The module that owns a parameter. Tensors of a parametrization belong to the module that is parametrized.
function layerOf(name, depth) {
  if (depth === "parameter") return name;
  const parts = name.split("."), made = parts.indexOf("parametrizations");
  parts.length = made >= 0 && made < parts.length - 1 ? made : parts.length - 1;
  return (depth === "layer" ? parts : parts.slice(0, Number(depth))).join(".") || "(root)";
}

// At most `width` characters. A longer text loses its middle, because the end of a name says the most.
function clipMiddle(text, width) {
  if (text.length <= width) return text;
  const head = Math.floor((width - 1) / 3);
  return `${text.slice(0, head)}…${text.slice(text.length - (width - 1 - head))}`;
}

// Shorten different names to at most `width` characters each, so that they stay different. If losing the middle makes
// two equal, the places where they differ are kept instead of the beginning, or the row number is appended.
function fitNames(names, width) {
  const shown = names.map(name => clipMiddle(name, width)), kept = new Map();
  for (let pass = 0; pass < 3; pass++) for (const alike of alikeRows(shown)) {
    const start = firstDifference(alike.map(row => names[row]));
    for (const row of alike) {
      kept.set(row, [...(kept.get(row) ?? []), start].sort((a, b) => a - b));
      shown[row] = around(names[row], kept.get(row), width);
    }
  }
  for (const alike of alikeRows(shown)) for (const row of alike) {
    const mark = `~${row + 1}`;
    shown[row] = shown[row].slice(0, width - mark.length) + mark;
  }
  return shown;
}

function alikeRows(shown) {
  const rows = new Map();
  shown.forEach((text, row) => rows.set(text, [...(rows.get(text) ?? []), row]));
  return [...rows.values()].filter(members => members.length > 1);
}

// The start of the first component in which the names differ.
function firstDifference(names) {
  const sorted = [...names].sort(), first = sorted[0], last = sorted[sorted.length - 1];
  let at = 0;
  while (at < first.length && first[at] === last[at]) at++;
  return at === 0 ? 0 : first.lastIndexOf(".", at - 1) + 1;
}

// The pieces of a name that begin at `starts`, and its end.
function around(name, starts, width) {
  const piece = Math.floor((width - 1 - starts.length) / (1 + starts.length));
  if (piece < 3) return clipMiddle(name, width);
  const end = width - 1 - starts.length - piece * starts.length;
  return `${starts.map(start => `…${name.slice(start, start + piece)}`).join("")}…${name.slice(-end)}`;
}

// Rows of a metric combined to a depth, computed once: the root mean square weighted by size.
const tables = new Map();
function rollUp(data, metric, depth) {
  const key = `${metric} ${depth}`;
  if (!tables.has(key)) tables.set(key, makeTable(data, metric, depth));
  return tables.get(key);
}

function makeTable(data, metric, depth) {
  const source = data.metrics[metric];
  if (depth === "parameter") return { ...source, names: data.names };
  const groups = new Map();
  data.names.forEach((name, row) => {
    const layer = layerOf(name, depth);
    if (!groups.has(layer)) groups.set(layer, []);
    groups.get(layer).push(row);
  });
  const members = [...groups.values()], columns = source.columns;
  const values = new Float32Array(members.length * columns);
  members.forEach((rows, g) => {
    for (let c = 0; c < columns; c++) values[g * columns + c] = combine(data, source, rows, c);
  });
  return { ...source, names: [...groups.keys()], values };
}

function combine(data, source, rows, column) {
  let top = NOTHING, bad = false;
  for (const row of rows) {
    const value = source.values[row * source.columns + column];
    if (value === BAD) bad = true; else if (value > top) top = value;
  }
  if (bad) return BAD;
  if (!ordinary(top)) return top;
  let sum = 0, size = 0;
  for (const row of rows) {
    const value = source.values[row * source.columns + column];
    if (value === NOTHING) continue;
    if (ordinary(value)) sum += data.numel[row] * 10 ** (2 * (value - top));
    size += data.numel[row];
  }
  return size && sum ? top + 0.5 * Math.log10(sum / size) : top;
}

// Lowest, median and highest ordinary value of every row, computed once.
function statistics(table) {
  if (table.statistics) return table.statistics;
  const rows = table.names.length, found = { low: new Float32Array(rows), middle: new Float32Array(rows), high: new Float32Array(rows) };
  for (let row = 0; row < rows; row++) {
    const values = table.values.subarray(row * table.columns, (row + 1) * table.columns).filter(ordinary).sort();
    found.low[row] = values.length ? values[0] : NaN;
    found.middle[row] = values.length ? values[values.length >> 1] : NaN;
    found.high[row] = values.length ? values[values.length - 1] : NaN;
  }
  table.statistics = found;
  return found;
}
const middleOf = (table, row) => statistics(table).middle[row];

const columnValue = (table, row, column) => table.values[row * table.columns + column];

// Rows to show after the filter, in the chosen order. Orders by value use `step`.
function arrange(table, order, filter, step) {
  const wanted = filter.trim().toLowerCase();
  let rows = table.names.map((_, i) => i);
  if (wanted) rows = rows.filter(i => table.names[i].toLowerCase().includes(wanted));
  if (!table.columns) return rows;
  const column = binOf(table.first, step);
  if (order === "name") {
    const compare = new Intl.Collator("en", { numeric: true }).compare;
    rows.sort((a, b) => compare(table.names[a], table.names[b]));
  } else if (order === "value") {
    rows.sort((a, b) => columnValue(table, b, column) - columnValue(table, a, column));
  } else if (order === "change") {
    const change = rows.reduce((all, i) => all.set(i, changeOf(table, i, column)), new Map());
    rows.sort((a, b) => change.get(b) - change.get(a));
  }
  return rows;
}

// The distance of a row from its median, in decades: infinite for inf or NaN, -1 if there is no value.
function changeOf(table, row, column) {
  const value = columnValue(table, row, column);
  if (value === BAD) return Infinity;
  return ordinary(value) ? Math.abs(value - middleOf(table, row)) || 0 : -1;
}

// The 1st to the 99th percentile of the values, so that one outlier does not use up the colours.
function colourRange(table, rows) {
  const sample = [], total = table.columns * rows.length, stride = Math.max(1, Math.floor(total / 40000));
  for (let i = 0; i < total; i += stride) {
    const value = columnValue(table, rows[Math.floor(i / table.columns)], i % table.columns);
    if (ordinary(value)) sample.push(value);
  }
  sample.sort((a, b) => a - b);
  if (!sample.length) return [-1, 0];
  const low = sample[Math.floor(0.01 * (sample.length - 1))], high = sample[Math.ceil(0.99 * (sample.length - 1))];
  return high - low < 0.2 ? [low - 0.1, high + 0.1] : [low, high];
}

// The mean of some rows in a column; BAD if any of them is BAD, ZERO or NOTHING if none has a value.
function meanOf(table, rows, column) {
  let sum = 0, seen = 0, zero = false;
  for (const row of rows) {
    const value = columnValue(table, row, column);
    if (value === BAD) return BAD;
    if (value === ZERO) zero = true;
    else if (value !== NOTHING) { sum += value; seen++; }
  }
  return seen ? sum / seen : zero ? ZERO : NOTHING;
}

// At most eight rows each: the largest, the smallest, and those farthest from their median.
function standOut(table, rows, column) {
  const value = row => columnValue(table, row, column);
  const recorded = rows.filter(row => value(row) !== NOTHING).sort((a, b) => value(b) - value(a));
  const moved = recorded.map(row => [row, changeOf(table, row, column)]).filter(([, change]) => change > 0);
  moved.sort((a, b) => b[1] - a[1]);
  return { largest: recorded.slice(0, 8), smallest: recorded.slice(-8).reverse(), moved: moved.slice(0, 8).map(([row]) => row) };
}

// [first, end) of every stretch of true values.
function stretchesOf(flags) {
  const found = [];
  flags.forEach((flag, i) => {
    if (flag && !flags[i - 1]) found.push([i, i + 1]);
    else if (flag) found[found.length - 1][1] = i + 1;
  });
  return found;
}
