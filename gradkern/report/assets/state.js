// The state that the parts of the page share: the chosen step and row, the zoom, the cursor.

class State {
  constructor(data) {
    const rms = data.metrics.rms, bins = data.series;
    this.findings = data.findings;
    this.turns = data.events.filter(event => !["skip", "spike"].includes(event.kind));  // those have marks of their own
    const first = bins.first[0] ?? 0, last = bins.last[bins.last.length - 1] ?? 1;
    this.all = first === last ? [first - 1, last + 1] : [first, last];
    this.step = bins.last.length ? rms.first[rms.columns - 1] ?? bins.first[bins.first.length - 1] : 0;
    this.row = 0;
    this.pinned = null;
    this.span = null;  // the steps that are zoomed to, as [from, to]; null for all
    this.hovered = null;
    this.metric = "rms";
    this.depth = data.names.length > 400 ? "layer" : "parameter";
    this.order = "model";
    this.filter = "";
    this.watchers = [];
  }

  // kinds: "step", "rows", "zoom", "hover", "theme"
  watch(watcher) { this.watchers.push(watcher); }
  announce(kind) { for (const watcher of this.watchers) watcher(kind); }

  choose(step) {
    this.step = step;
    this.announce("step");
    if (this.order !== "model" && this.order !== "name") this.announce("rows");
  }

  // The steps that charts and heatmap show.
  extent() { return this.span ?? this.all; }

  zoom(span) {
    this.span = span;
    this.announce("zoom");
  }

  hover(step) {
    if (step === this.hovered) return;
    this.hovered = step;
    this.announce("hover");
  }
}
