// The rows that stand out at the chosen step, as text.

class Extremes {
  constructor(card, state, data) {
    Object.assign(this, { state, data });
    this.readout = heading(card, "Rows that stand out");
    this.place = element("div", { className: "tables" });
    card.append(this.place);
    state.watch(kind => { if (kind === "step" || kind === "rows") this.refresh(); });
    this.refresh();
  }

  refresh() {
    const { state } = this, values = rollUp(this.data, state.metric, state.depth);
    const column = binOf(values.first, state.step);
    this.readout.textContent = values.columns ? stepRange(values.first[column], values.last[column]) : "";
    if (!values.columns) return;
    const found = standOut(values, arrange(values, "model", state.filter, state.step), column);
    const text = row => [values.names[row], cellText(columnValue(values, row, column))];
    const change = row => {
      const value = columnValue(values, row, column);
      return [values.names[row], value === BAD ? "inf or NaN" : `×${format(Number((10 ** (value - middleOf(values, row))).toPrecision(3)))}`];
    };
    this.place.replaceChildren(
      table("Largest", METRICS[state.metric], found.largest.map(text)),
      table("Smallest", METRICS[state.metric], found.smallest.map(text)),
      table("Farthest from their median over the run", "change", found.moved.map(change)));
  }
}

function table(caption, label, rows) {
  const made = element("table", {}, element("caption", {}, caption),
    element("tr", {}, element("th", { scope: "col" }, "row"), element("th", { scope: "col" }, label)));
  for (const [name, value] of rows) made.append(element("tr", {}, element("td", {}, name), element("td", {}, value)));
  return made;
}
