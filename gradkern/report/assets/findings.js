// The findings of the diagnosis with their remedies, the headline first.

function findings(parent, state, data) {
  if (!data.findings.length) return;
  const place = card(parent, true), alarms = data.findings.filter(found => found.severity !== "info");
  heading(place, alarms.length ? "Diagnosis" : "Diagnosis: no warnings");
  data.findings.forEach((found, i) => {
    if (i === 1) place.append(element("h3", { className: "also" }, "Also seen"));
    place.append(finding(found, state, i === 0));
  });
}

function finding(found, state, open) {
  const since = element("button", { type: "button", title: "Show this step" }, `step ${integer(found.first_step)}`);
  since.addEventListener("click", () => state.choose(found.first_step));
  const made = element("article", { className: `finding ${found.severity}` },
    element("h3", {}, `${sentence(found.kind)} (${found.severity}), since `, since),
    element("p", {}, found.why));
  if (found.layers.length) made.append(element("p", {}, `Where: ${shortList(found.layers)}`));
  if (found.numbers) made.append(element("p", { className: "evidence" }, found.numbers));
  if (found.remedies.length) made.append(remedies(found.remedies, open));
  return made;
}

// The first three; `gradkern diagnose --json` lists all.
function remedies(list, open) {
  const items = list.slice(0, 3).map(remedy => {
    const item = element("li", {}, remedy.because);
    if (remedy.code) item.append(element("pre", {}, element("code", {}, remedy.code)));
    return item;
  });
  return element("details", { open }, element("summary", {}, "What to do"), element("ol", {}, ...items));
}

const shortList = names => (names.length <= 6 ? names.join(", ") : `${names.slice(0, 5).join(", ")} and ${names.length - 5} more`);
