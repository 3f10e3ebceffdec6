"use strict";
// How numbers are drawn: rows of bars over one axis, and estimates over time. Nothing is drawn of
// what is not known. Everything that came from somebody goes through textContent or an attribute.

const SVG = "http://www.w3.org/2000/svg";
const SVG_NAMES = new Set(["svg", "line", "rect", "circle", "path", "text", "title", "g"]);
const COLOURS = 8;
const DAY_SECONDS = 86400;
const NORMAL_95 = 1.959964;
const ROW = 34;
// Digits after the point, by the range of the rewards.
const precision = { digits: 3, span: 1 };

function element(name, attributes = {}, ...children) {
  const made = SVG_NAMES.has(name) ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null)
    .map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

const known = (value) => value !== null && value !== undefined && Number.isFinite(value);
const count = (value) => value.toLocaleString("en-US");
const colour = (index) => `c${index % COLOURS}`;
// A proper minus, and a plus where a difference is meant.
const signed = (text, value) => (value < 0 ? `−${text.slice(1)}` : text);
const number = (value, digits = precision.digits) => (known(value) ? signed(value.toFixed(digits), value) : "unknown");
const difference = (value) => (value > 0 ? `+${number(value)}` : number(value));

function adoptRange([low, high]) {
  precision.span = high - low;
  precision.digits = Math.min(Math.max(3 - Math.floor(Math.log10(high - low) + 1e-9), 0), 15);
}

function moment(seconds, dated) {
  const date = new Date(1000 * seconds);
  const clock = { hour: "2-digit", minute: "2-digit" };
  if (!dated) return date.toLocaleTimeString([], clock);
  return date.toLocaleString([], { ...clock, month: "short", day: "numeric" });
}

const today = (seconds) => new Date(1000 * seconds).toDateString() === new Date().toDateString();

// A round step that cuts a range into about `parts`, and the multiples of it inside.
function ticks([low, high], parts) {
  const rough = (high - low) / parts;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, index) => (first + index) * step);
}

function digits(marks) {
  const step = marks.length > 1 ? marks[1] - marks[0] : 1;
  return Math.max(0, Math.ceil(-Math.log10(step) - 1e-9));
}

function range(values, pad) {
  const numbers = values.filter(known);
  if (!numbers.length) return null;
  const low = Math.min(...numbers);
  const high = Math.max(...numbers);
  const room = (high - low || Math.abs(high) || 1) * pad;
  return [low - room, high + room];
}

function row(name, figure, numbers, kind = "") {
  return element(
    "div",
    { class: `row ${kind}` },
    element("div", { class: "name" }, ...name),
    element("div", { class: "figure" }, figure),
    element("div", { class: "number" }, ...numbers),
  );
}

const small = (text) => (text ? element("small", {}, text) : null);

// In pixels of the screen, so that labels have the same size on a phone.
function figureWidth(holder, kind = "") {
  const probe = row(["x"], null, ["x"], kind);
  holder.append(probe);
  const width = probe.querySelector(".figure").clientWidth;
  probe.remove();
  return Math.max(width, 120);
}

// The place of a value on an axis with room for half a label at either end.
function scale([low, high], width) {
  return (value) => 14 + ((width - 28) * (value - low)) / (high - low);
}

function axis(domain, width, x, text = number, kind = "") {
  const drawn = element("svg", { viewBox: `0 0 ${width} 20`, role: "presentation", class: "axis" });
  const marks = ticks(domain, width < 360 ? 4 : 7);
  const places = digits(marks);
  drawn.append(element("line", { x1: x(domain[0]), x2: x(domain[1]), y1: 0.5, y2: 0.5, class: "grid" }));
  for (const mark of marks) {
    drawn.append(element("line", { x1: x(mark), x2: x(mark), y1: 0, y2: 4, class: "grid" }));
    drawn.append(element("text", { x: x(mark), y: 16, "text-anchor": "middle" }, text(mark, places)));
  }
  return row([], drawn, [], `axis-row ${kind}`);
}

// A line between two ends; a cap only where an end is known, up to the edge where it is not.
function whisker(drawn, x, domain, ends, middle, kind) {
  const [from, to] = ends.map((end, at) => (end === null ? domain[at] : end));
  drawn.append(element("line", { x1: x(from), x2: x(to), y1: middle, y2: middle, class: kind }));
  for (const end of ends) {
    if (end === null) continue;
    drawn.append(element("line", { x1: x(end), x2: x(end), y1: middle - 6, y2: middle + 6, class: kind }));
  }
}

// Certified ends, null where an end says no more than what rewards can be.
function certifiedEnds(each, [low, high]) {
  const tiny = 1e-9 * (high - low);
  return [
    known(each.lower) && each.lower > low + tiny ? each.lower : null,
    known(each.upper) && each.upper < high - tiny ? each.upper : null,
  ];
}

function endsText([low, high], text) {
  if (low !== null && high !== null) return `${text(low)} … ${text(high)}`;
  if (low !== null) return `at least ${text(low)}`;
  return high !== null ? `at most ${text(high)}` : "";
}

// No mean is told without its error, and none whose error says that it may be anything.
function logKnown(each) {
  const error = NORMAL_95 * (each.log_standard_error ?? 0);
  return known(each.log_mean) && error > 0 && error < precision.span / 2;
}

function valueRow(each, index, context) {
  const { domain, width, x, routing, rank, span } = context;
  const middle = ROW / 2;
  const ends = certifiedEnds(each, span);
  const hue = index < 0 ? "of-routing" : colour(index);
  const drawn = element("svg", { viewBox: `0 0 ${width} ${ROW}`, role: "img", class: hue });
  drawn.append(element("title", {}, `${each.model}: ${each.shown ? number(each.shown.value) : "unknown"}`));
  if (domain !== null) {
    drawn.append(element("line", { x1: x(domain[0]), x2: x(domain[1]), y1: middle, y2: middle, class: "grid" }));
    if (routing) {
      const [from, to] = routing.interval.map(x);
      drawn.append(element("rect", { x: from, y: 0, width: Math.max(to - from, 1), height: ROW, class: "routing-band" }));
      drawn.append(element("line", { x1: x(routing.value), x2: x(routing.value), y1: 0, y2: ROW, class: "routing-line" }));
    }
    if (ends[0] !== null || ends[1] !== null) whisker(drawn, x, domain, ends, middle, "certain-line");
    if (each.shown) {
      const [from, to] = each.shown.interval.map(x);
      const box = { x: from, y: middle - 5, width: Math.max(to - from, 2), height: 10, rx: 5, class: "fill", opacity: 0.6 };
      drawn.append(element("rect", box));
      drawn.append(element("circle", { cx: x(each.shown.value), cy: middle, r: 5, class: "fill" }));
    }
    if (logKnown(each)) {
      const at = x(each.log_mean);
      const corners = `M${at},${middle - 7}L${at + 6},${middle}L${at},${middle + 7}L${at - 6},${middle}Z`;
      drawn.append(element("path", { d: corners, class: "log-mark" }));
    }
  }
  const value = each.shown
    ? `${number(each.shown.value)} ± ${number(NORMAL_95 * each.shown.standard_error)}` : "unknown";
  const certain = endsText(ends, number);
  const place = rank.get(each.model);
  const log = logKnown(each)
    ? `log ${number(each.log_mean)} ± ${number(NORMAL_95 * each.log_standard_error)}${place ? `, no. ${place}` : ""}`
    : "";
  return row(
    [each.model, small(each.note), small(context.label(each))],
    drawn,
    [value, small(certain ? `certified ${certain}` : "nothing certified"), small(log)],
    context.kind,
  );
}

// What each model is worth: those compared now, and apart from them those that are not.
function drawValues(holder, estimates) {
  const span = estimates.reward_range;
  const { models, todays_routing: routed } = estimates;
  const all = [...models, routed].flatMap((each) => [
    ...(each.shown ? each.shown.interval : []), logKnown(each) ? each.log_mean : null,
    ...certifiedEnds(each, span)]);
  const domain = range(all, 0.04);
  holder.replaceChildren();
  const width = figureWidth(holder);
  const x = domain === null ? null : scale(domain, width);
  const turned = estimates.maximise ? 1 : -1;
  const logged = models.filter(logKnown)
    .sort((one, other) => turned * (other.log_mean - one.log_mean));
  const rank = new Map(logged.length > 1 ? logged.map((each, place) => [each.model, place + 1]) : []);
  const label = (each) =>
    (each.shown && ![estimates.estimator, "routed"].includes(each.shown.family) ? `by ${each.shown.family}` : "");
  const context = { domain, width, x, routing: routed.shown, rank, span, label, kind: "" };
  const draw = (each, kind = "") => valueRow(each, models.indexOf(each), { ...context, kind });
  const out = models.filter((each) => !each.compared);
  holder.append(...models.filter((each) => each.compared).map((each) => draw(each)));
  holder.append(draw({ ...routed, note: "" }));
  if (out.length) {
    holder.append(element("h3", {}, "Not compared now"));
    holder.append(...out.map((each) => draw({ ...each, note: each.retired ? "retired" : "left out of this era" }, "out")));
  }
  if (domain !== null) holder.append(axis(domain, width, x));
}

const VERDICTS = {
  better: "better", worse: "worse", alike: "within ε", close: "at most ε worse", open: "not decided",
};
const TONES = { better: "good-line", worse: "bad-line", alike: "good-line", close: "good-line", open: "certain-line" };

// Certified differences of one model from the others, over a zero line.
function drawComparisons(holder, { comparisons, epsilon, span }) {
  const reach = span[1] - span[0];
  const rows = comparisons.map((each) => ({ ...each, ends: certifiedEnds(each, [-reach, reach]) }));
  const domain = range([0, ...rows.flatMap((each) => each.ends)], 0.06);
  const drawable = rows.some((each) => each.ends[0] !== null || each.ends[1] !== null);
  holder.replaceChildren();
  const width = figureWidth(holder, "wide");
  const x = scale(domain, width);
  const middle = ROW / 2;
  for (const each of rows) {
    const drawn = element("svg", { viewBox: `0 0 ${width} ${ROW}`, role: "img" });
    const text = endsText(each.ends, difference);
    drawn.append(element("title", {}, `${each.model} − ${each.other}: ${text || "nothing certified"}`));
    if (drawable) {
      if (epsilon > 0) {
        const [from, to] = [-epsilon, epsilon].map((end) => x(Math.min(Math.max(end, domain[0]), domain[1])));
        drawn.append(element("rect", { x: from, y: 0, width: to - from, height: ROW, class: "alike-band" }));
      }
      drawn.append(element("line", { x1: x(0), x2: x(0), y1: 0, y2: ROW, class: "zero-line" }));
      if (text) whisker(drawn, x, domain, each.ends, middle, `contrast-line ${TONES[each.verdict]}`);
    }
    holder.append(row(
      [`${each.model} − ${each.other}`],
      drawn,
      text ? [text, small(VERDICTS[each.verdict])] : ["nothing certified"],
      "wide",
    ));
  }
  if (drawable) holder.append(axis(domain, width, x, (mark, places) => (mark > 0 ? `+${number(mark, places)}` : number(mark, places)), "wide"));
}

// The last point of each number of randomized requests: time without any takes no room.
function progress(points) {
  const first = points.findIndex((point) => point.models.some((each) => each !== null));
  const steps = new Map();
  for (const point of first < 0 ? [] : points.slice(first)) steps.set(point.randomized, point);
  return [...steps.values()];
}

// Estimates of some models, by their positions, over the randomized requests made. Whether anything
// was drawn.
function drawHistory(holder, points, places) {
  const steps = progress(points);
  if (steps.length < 2) return false;
  // The first points are so unsure that they would flatten all the others.
  const settled = steps.slice(Math.floor(steps.length / 8));
  const rows = (point) => [...places.map((place) => point.models[place]), point.routing];
  const drawnEnds = settled.flatMap((point) => rows(point).filter((each) => each !== null)
    .flatMap((each) => each.slice(1)));
  const [low, high] = range(drawnEnds, 0.05);
  const [first, last] = [steps[0], steps[steps.length - 1]];
  const right = Math.max(holder.clientWidth, 240) - 4;
  const marks = ticks([low, high], 5);
  const after = digits(marks);
  const left = 16 + 7 * Math.max(...marks.map((mark) => number(mark, after).length));
  const x = (requests) =>
    left + ((right - left) * (requests - first.randomized)) / (last.randomized - first.randomized);
  const y = (value) => 200 - (190 * (Math.min(Math.max(value, low), high) - low)) / (high - low);
  const drawn = element("svg", { viewBox: `0 0 ${right + 4} 240`, role: "img" });
  drawn.append(element("title", {}, "Estimates by randomized requests made"));
  for (const mark of marks) {
    drawn.append(element("line", { x1: left, x2: right, y1: y(mark), y2: y(mark), class: "grid" }));
    drawn.append(element("text", { x: left - 6, y: y(mark) + 4, "text-anchor": "end" }, number(mark, after)));
  }
  const dated = last.at - first.at > DAY_SECONDS || !today(first.at);
  for (const mark of ticks([first.randomized, last.randomized], right < 500 ? 3 : 6)) {
    if (!Number.isInteger(mark)) continue;
    const at = (steps.find((point) => point.randomized >= mark) ?? last).at;
    const anchor = x(mark) > right - 30 ? "end" : "middle";
    drawn.append(element("line", { x1: x(mark), x2: x(mark), y1: 200, y2: 204, class: "grid" }));
    drawn.append(element("text", { x: x(mark), y: 217, "text-anchor": anchor }, count(mark)));
    drawn.append(element("text", { x: x(mark), y: 233, "text-anchor": anchor, class: "faint" }, moment(at, dated)));
  }
  steps.slice(1).forEach((point, at) => {
    if (point.era === steps[at].era) return;
    const place = x(point.randomized);
    drawn.append(element("line", { x1: place, x2: place, y1: 8, y2: 200, class: "era-line" }));
    drawn.append(element("text", { x: place + 4, y: 16 }, `era ${point.era}`));
  });
  const line = (pick, kind, across) => {
    const found = steps.map((point) => [x(point.randomized), pick(point)]).filter((pair) => pair[1] != null);
    if (found.length < 2) return;
    const group = element("g", { class: kind });
    const upper = found.map(([place, each]) => `${place},${y(each[2])}`);
    const lower = found.map(([place, each]) => `${place},${y(each[1])}`).reverse();
    group.append(element("path", { d: `M${[...upper, ...lower].join("L")}Z`, class: across ? "routing-band" : "band" }));
    const middle = found.map(([place, each]) => `${place},${y(each[0])}`);
    group.append(element("path", { d: `M${middle.join("L")}`, class: across ? "routing-line" : "line" }));
    drawn.append(group);
  };
  line((point) => point.routing, "", true);
  places.forEach((index) => line((point) => point.models[index], colour(index), false));
  holder.replaceChildren(drawn);
  return true;
}

function bar(name, value, total, kind, text = "") {
  const share = total ? (100 * value) / total : 0;
  const inner = element("div", { class: `fill ${kind}` });
  inner.style.width = `${Math.min(share, 100)}%`;
  const label = text || `${value.toLocaleString("en-US", { maximumFractionDigits: 2 })} (${share.toFixed(0)}%)`;
  return row([name], element("div", { class: "bar" }, inner), [label]);
}
