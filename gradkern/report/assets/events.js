// Events of the run: skipped steps, spikes, new thresholds, rollbacks, the caller's own.

function events(parent, state, data) {
  if (!data.events.length) return;
  const place = card(parent, true), readout = heading(place, "Events");
  readout.textContent = Object.entries(data.happened).map(([kind, count]) => `${integer(count)} ${kind}`).join(", ");
  const rows = data.events.map(event => {
    const step = element("button", { type: "button", title: "Show this step" }, integer(event.step));
    step.addEventListener("click", () => state.choose(event.step));
    return element("tr", { className: event.severity }, element("td", {}, step),
      element("td", {}, event.title), element("td", {}, event.text));
  });
  const head = ["step", "what", "details"].map(text => element("th", { scope: "col" }, text));
  place.append(element("div", { className: "events" }, element("table", {}, element("tr", {}, ...head), ...rows)));
  const all = Object.values(data.happened).reduce((sum, count) => sum + count, 0);
  if (all > rows.length) place.append(element("p", { className: "note" }, "Only the first and the last events of each kind are listed."));
}

// The total norm of each group of parameters, or of each model that is trained.
function groups(parent, state, data) {
  const names = Object.keys(data.groups), colours = ["blue", "orange", "green", "violet", "red", "ink", "soft", "zero"];
  if (!names.length) return;
  stepChart(card(parent, true), state, data.series, {
    title: "Total norm of each group", log: true, empty: "No finite norm of a group was recorded.",
    curves: names.map((name, i) => ({ label: name, colour: colours[i], values: numbers(data.groups[name]) })),
  });
}

// The caller's own numbers; norms over the positions of a sequence span orders of magnitude.
function own(parent, state, data) {
  const colours = ["blue", "orange", "green", "violet", "red"];
  for (const { title, curves } of data.own) {
    const names = Object.keys(curves);
    stepChart(card(parent), state, data.series, {
      title, log: title.startsWith("gradient_over_time/"), height: 180, empty: "No finite number was recorded.",
      curves: names.map((name, i) => ({ label: name, colour: colours[i % colours.length], values: numbers(curves[name]) })),
    });
  }
}
