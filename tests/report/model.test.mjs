// The page's model, without a browser: decoding, roll-up, order, what stands out. Run by test_javascript.py.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import vm from "node:vm";

const folder = process.env.GRADKERN_ASSETS;
const source = ["model.js", "text.js"].map(name => readFileSync(`${folder}/${name}`, "utf8")).join("\n");
const names = ["NOTHING", "ZERO", "BAD", "numbers", "decodeMatrix", "binOf", "layerOf", "fitNames", "clipMiddle", "rollUp", "arrange", "changeOf", "statistics",
  "colourRange", "meanOf", "standOut", "stretchesOf", "ticks", "decade", "format", "percent", "stepRange", "cellText"];
const page = vm.runInNewContext(`${source}\n;({${names.join(",")}})`, { atob });
const plain = value => JSON.parse(JSON.stringify(value));

function matrix(rows) {  // log10 values as one table
  const columns = rows[0].length;
  return { first: rows[0].map((_, i) => 10 * i), last: rows[0].map((_, i) => 10 * i + 9), columns, values: Float32Array.from(rows.flat()) };
}

test("numbers: null is NaN, infinities come as text", () => {
  const [a, b, c] = page.numbers([null, "Infinity", 2]);
  assert.ok(Number.isNaN(a));
  assert.deepEqual([b, c], [Infinity, 2]);
});

test("a packed matrix: nothing, zero, inf or NaN, and log10 values between lo and hi", () => {
  const codes = Uint16Array.from([0, 1, 65535, 2, 65534, 32768]);
  const data = Buffer.from(codes.buffer).toString("base64");
  const { values, columns } = page.decodeMatrix({ first: [1, 2, 3], last: [1, 2, 3], lo: -4, hi: 0, data }, 2);
  assert.equal(columns, 3);
  assert.deepEqual([...values.slice(0, 5)], [page.NOTHING, page.ZERO, page.BAD, -4, 0]);
  assert.ok(Math.abs(values[5] + 2) < 1e-4);
});

test("binOf: the last bin that begins at or before a step", () => {
  assert.deepEqual([0, 5, 9, 10, 11, 99].map(step => page.binOf([5, 10, 11], step)), [0, 0, 0, 1, 2, 2]);
});

test("layerOf: the module, or some of its leading components", () => {
  assert.equal(page.layerOf("a.b.weight", "layer"), "a.b");
  assert.equal(page.layerOf("a.b.weight", "1"), "a");
  assert.equal(page.layerOf("weight", "layer"), "(root)");
  assert.equal(page.layerOf("a.b.weight", "parameter"), "a.b.weight");
});

test("layerOf: a parametrization belongs to the module that has it", () => {
  assert.equal(page.layerOf("a.b.parametrizations.weight.original0", "layer"), "a.b");
  assert.equal(page.layerOf("parametrizations.weight.0.lora_A", "layer"), "(root)");
  assert.equal(page.layerOf("a.b.parametrizations.weight.original0", "1"), "a");
});

test("fitNames: names that are cut stay different", () => {
  const deep = Array.from({ length: 120 }, (_, i) => `blocks.${Math.floor(i / 4)}.experts.${i % 4}.down_projection.weight`);
  for (const width of [12, 20, 38, 80]) {
    const shown = page.fitNames(deep, width);
    assert.equal(new Set(shown).size, deep.length);
    assert.ok(shown.every(text => text.length <= width));
  }
  assert.deepEqual(plain(page.fitNames(["a.b", "c"], 20)), ["a.b", "c"]);
  assert.equal(page.clipMiddle("abcdefghij", 7), "ab…ghij");
});

test("rollUp: the root of the mean square weighted by size; inf or NaN wins", () => {
  const data = { names: ["a.w", "a.b", "c.w"], numel: [3, 1, 5], metrics: { rms: matrix([[0, page.BAD], [1, 0], [page.ZERO, page.NOTHING]]) } };
  const { names: layers, values } = page.rollUp(data, "rms", "layer");
  assert.deepEqual([...layers], ["a", "c"]);
  assert.ok(Math.abs(values[0] - Math.log10(Math.sqrt((3 * 1 + 1 * 100) / 4))) < 1e-6);
  assert.deepEqual([values[1], values[2], values[3]], [page.BAD, page.ZERO, page.NOTHING]);
});

test("arrange: filter and orders", () => {
  const table = { ...matrix([[0, 1, 0], [0, 3, 0], [0, 0, 0]]), names: ["x.10", "x.2", "y.1"] };
  assert.deepEqual(plain(page.arrange(table, "name", "", 0)), [1, 0, 2]);
  assert.deepEqual(plain(page.arrange(table, "value", "", 15)), [1, 0, 2]);
  assert.deepEqual(plain(page.arrange(table, "change", "", 15)), [1, 0, 2]);
  assert.deepEqual(plain(page.arrange(table, "model", " X.", 0)), [0, 1]);
});

test("standOut: largest, smallest, and farthest from their own median", () => {
  const table = { ...matrix([[0, 0, 4], [1, 1, 1], [page.NOTHING, page.NOTHING, page.NOTHING]]), names: ["a", "b", "c"] };
  assert.deepEqual(plain(page.standOut(table, [0, 1, 2], 2)), { largest: [0, 1], smallest: [1, 0], moved: [0] });
});

test("meanOf and colourRange", () => {
  const table = { ...matrix([[0, page.BAD, page.ZERO], [2, 1, page.NOTHING]]), names: ["a", "b"] };
  assert.deepEqual([0, 1, 2].map(column => page.meanOf(table, [0, 1], column)), [1, page.BAD, page.ZERO]);
  assert.equal(page.meanOf(table, [1], 2), page.NOTHING);
  assert.deepEqual(plain(page.colourRange(table, [0, 1])), [0, 2]);
  assert.deepEqual(plain(page.colourRange({ ...matrix([[page.ZERO]]), names: ["a"] }, [0])), [-1, 0]);
});

test("stretchesOf, ticks and text", () => {
  assert.deepEqual(plain(page.stretchesOf([true, true, false, true])), [[0, 2], [3, 4]]);
  assert.deepEqual(plain(page.ticks(0, 10, 5)), [0, 2, 4, 6, 8, 10]);
  assert.deepEqual([-5, 0, 0.5].map(page.decade), ["1e-5", "1", "3.162"]);
  assert.deepEqual([0, 1e-9, 12345678, NaN, Infinity].map(page.format), ["0", "1.00e-9", "1.23e+7", "–", "inf"]);
  assert.deepEqual([page.percent(0.25), page.percent(NaN), page.stepRange(3, 3), page.stepRange(1, 2000)], ["25 %", "–", "step 3", "steps 1–2,000"]);
  assert.deepEqual([page.NOTHING, page.ZERO, page.BAD, -2].map(page.cellText), ["not recorded", "0", "inf or NaN", "0.01"]);
});
