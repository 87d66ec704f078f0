// What the heatmap shows: quantity, rows, order, filter, zoom of rows.

function choice(label, options, value, change) {
  const made = element("select");
  for (const [key, text] of options) made.append(element("option", { value: key, selected: key === value }, text));
  made.addEventListener("change", () => change(made.value));
  return element("label", {}, label, made);
}

function zoomButton(text, title, act) {
  const made = element("button", { type: "button", title, "aria-label": title }, text);
  made.addEventListener("click", act);
  return made;
}

function buildControls(card, state, data, zoom) {
  const depths = Math.max(...data.names.map(name => name.split(".").length - 1), 0);
  const levels = [["parameter", "every parameter"]];
  if (depths > 0) levels.push(["layer", "layer"]);
  for (let d = Math.min(depths, 4); d > 0; d--) levels.push([String(d), `depth ${d}`]);
  const set = key => value => { state[key] = value; state.announce("rows"); };
  const place = element("div", { className: "controls" });
  if (Object.keys(data.metrics).length > 1) {
    place.append(choice("value", Object.keys(data.metrics).map(key => [key, METRICS[key]]), state.metric, set("metric")));
  }
  const orders = [["model", "model order"], ["name", "name"], ["value", "value at the step"], ["change", "change from median"]];
  const filter = element("input", { type: "search", placeholder: "name…" });
  filter.addEventListener("input", () => set("filter")(filter.value));
  place.append(choice("rows", levels, state.depth, set("depth")), choice("sort", orders, state.order, set("order")),
    element("label", {}, "filter", filter),
    zoomButton("−", "Show more rows", () => zoom(2)), zoomButton("+", "Show fewer rows", () => zoom(0.5)),
    zoomButton("All rows", "Show all rows", () => zoom(Infinity)), zoomButton("All steps", "Show all steps", () => state.zoom(null)));
  card.append(place);
}
