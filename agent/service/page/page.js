"use strict";
// Everything that came from somebody goes through textContent or an attribute, never through HTML.
// The token a user enters lives in the input field of this tab and nowhere else.

const SVG = "http://www.w3.org/2000/svg";
const EVERY_MS = 5000;
const COLOURS = 8;
const NORMAL_95 = 1.959964;

const at = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const made = SVG_NAMES.has(name) ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return made;
}
const SVG_NAMES = new Set(["svg", "line", "rect", "circle", "path", "text", "title", "g"]);

const number = (value, digits = 3) => (value === null ? "unknown" : value.toFixed(digits));
const count = (value) => value.toLocaleString("en-US");
const colour = (index) => `c${index % COLOURS}`;

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  const token = at("token").value;
  if (token) headers.Authorization = `Bearer ${token}`;
  // Absolute, for a page that was opened with a name and a password in its address.
  const response = await fetch(location.origin + path, { ...options, headers, cache: "no-store" });
  const body = await response.json().catch(() => ({}));
  // A daemon that is not ready says so in a body that is fine.
  if (!response.ok && path !== "/readyz") throw new Error(said(response.status, body));
  return body;
}

function said(status, body) {
  if (status === 401) return "A token is needed: enter one below.";
  if (status === 403) return "This token may not do that: it needs scope admin.";
  return body.detail || `The daemon answered with status ${status}.`;
}

function pill(id, text, kind) {
  const made = at(id);
  made.textContent = text;
  made.className = `pill ${kind}`;
}

function range(values, pad) {
  const known = values.filter((value) => value !== null && Number.isFinite(value));
  if (!known.length) return [0, 1];
  const low = Math.min(...known);
  const high = Math.max(...known);
  const room = (high - low || Math.abs(high) || 1) * pad;
  return [low - room, high + room];
}

function ends(row) {
  if (row.value === null || row.standard_error === null) return [row.value, row.value];
  const half = NORMAL_95 * row.standard_error;
  return [row.value - half, row.value + half];
}

function showValues(estimates) {
  const rows = [...estimates.models, estimates.todays_routing];
  const all = rows.flatMap((row) => [...ends(row), row.lower, row.upper]);
  const [low, high] = range(all, 0.03);
  const x = (value) => (400 * (value - low)) / (high - low);
  const routing = estimates.todays_routing.value;
  at("values").replaceChildren(
    ...rows.map((row, index) => {
      const [from, to] = ends(row);
      const drawn = element("svg", { viewBox: "0 0 400 28", role: "img", class: colour(index) });
      drawn.append(element("title", {}, `${row.model}: ${number(row.value)}`));
      drawn.append(element("line", { x1: 0, x2: 400, y1: 14, y2: 14, class: "grid" }));
      if (row.lower !== null && row.upper !== null) {
        for (const [x1, x2, y1, y2] of [
          [row.lower, row.upper, 14, 14],
          [row.lower, row.lower, 9, 19],
          [row.upper, row.upper, 9, 19],
        ]) {
          drawn.append(element("line", { x1: x(x1), x2: x(x2), y1, y2, class: "certain-line" }));
        }
      }
      if (row.value !== null) {
        const width = Math.max(x(to) - x(from), 2);
        const box = { x: x(from), y: 9, width, height: 10, rx: 5, class: "fill", opacity: 0.6 };
        drawn.append(element("rect", box));
        drawn.append(element("circle", { cx: x(row.value), cy: 14, r: 5, class: "fill" }));
      }
      if (routing !== null) {
        const places = { x1: x(routing), x2: x(routing), y1: 0, y2: 28 };
        drawn.append(element("line", { ...places, class: "routing-line" }));
      }
      const error = row.standard_error === null ? "" : ` ± ${number(NORMAL_95 * row.standard_error)}`;
      const certain = row.lower === null ? "not certified" : `${number(row.lower)} … ${number(row.upper)}`;
      return element(
        "div",
        { class: "row" },
        element("div", { class: "name" }, row.model),
        element("div", { class: "figure" }, drawn),
        element("div", { class: "number" }, number(row.value) + error, element("small", {}, certain)),
      );
    }),
  );
}

function showHistory(points) {
  if (points.length < 2) {
    at("history").replaceChildren(element("p", { class: "muted" }, "Nothing to draw yet."));
    at("history-key").replaceChildren();
    return;
  }
  const names = points[points.length - 1].models.map((row) => row.model);
  // The first points are so unsure that they would flatten all the others.
  const settled = points.slice(Math.floor(points.length / 8));
  const [low, high] = range(settled.flatMap((point) => point.models.flatMap(ends)), 0.05);
  const first = points[0].at;
  const span = points[points.length - 1].at - first || 1;
  // In pixels of the screen, so that labels have the same size on a phone.
  const right = Math.max(at("history").clientWidth, 240) - 4;
  const x = (time) => 40 + ((right - 40) * (time - first)) / span;
  const y = (value) => 200 - (190 * (Math.min(Math.max(value, low), high) - low)) / (high - low);
  const drawn = element("svg", { viewBox: `0 0 ${right + 4} 225`, role: "img" });
  drawn.append(element("title", {}, `Estimates of ${names.join(", ")} over time`));
  for (let tick = 0; tick <= 4; tick += 1) {
    const value = low + ((high - low) * tick) / 4;
    drawn.append(element("line", { x1: 40, x2: right, y1: y(value), y2: y(value), class: "grid" }));
    drawn.append(element("text", { x: 34, y: y(value) + 4, "text-anchor": "end" }, number(value, 2)));
  }
  const moment = (seconds) => new Date(1000 * seconds).toLocaleTimeString();
  drawn.append(element("text", { x: 40, y: 220 }, moment(first)));
  drawn.append(element("text", { x: right, y: 220, "text-anchor": "end" }, moment(first + span)));
  names.forEach((_, index) => {
    const known = points.filter((point) => point.models[index] && point.models[index].value !== null);
    const places = known.map((point) => [x(point.at), point.models[index]]);
    const group = element("g", { class: colour(index) });
    const upper = places.map(([left, row]) => `${left},${y(ends(row)[1])}`);
    const lower = places.map(([left, row]) => `${left},${y(ends(row)[0])}`).reverse();
    if (places.length > 1) {
      group.append(element("path", { d: `M${[...upper, ...lower].join("L")}Z`, class: "band" }));
      const middle = places.map(([left, row]) => `${left},${y(row.value)}`);
      group.append(element("path", { d: `M${middle.join("L")}`, class: "line" }));
    }
    drawn.append(group);
  });
  at("history").replaceChildren(drawn);
  at("history-key").replaceChildren(
    ...names.flatMap((name, index) => [element("i", { class: `estimate ${colour(index)}` }), ` ${name} `]),
  );
}

function showSpent(estimates, budget) {
  const total = estimates.models.reduce((sum, row) => sum + row.exp_rewards, 0);
  at("spent").replaceChildren(
    ...estimates.models.map((row, index) => bar(row.model, row.exp_rewards, total, colour(index))),
    element("p", { class: "muted" }, `Rewards that came of ${count(estimates.randomized)} randomized requests`
      + ` among ${count(estimates.decisions)}; ${estimates.watermark.sentence}`),
  );
  if (budget.requests === null) {
    at("budget").replaceChildren(element("p", {}, `No limit; ${count(budget.randomized)} spent.`));
    return;
  }
  at("budget").replaceChildren(
    bar("spent", budget.randomized, budget.requests, "c5"),
    element("p", { class: "muted" }, `${count(budget.left)} of ${count(budget.requests)} are left.`),
  );
}

function bar(name, value, total, kind) {
  const share = total ? (100 * value) / total : 0;
  const inner = element("div", { class: `fill ${kind}` });
  inner.style.width = `${Math.min(share, 100)}%`;
  return element(
    "div",
    { class: "row" },
    element("div", {}, name),
    element("div", { class: "figure" }, element("div", { class: "bar" }, inner)),
    element("div", { class: "number" }, `${count(value)} (${share.toFixed(0)}%)`),
  );
}

const KINDS = { ok: "good", alarm: "bad", watch: "", unknown: "plain" };

function showChecks(checks) {
  const items = checks.checks.map((check) =>
    element("li", {}, element("span", { class: `pill ${KINDS[check.status] ?? ""}` }, check.status),
      " ", element("b", {}, check.name), " ", check.sentence));
  if (!items.length) items.push(element("li", { class: "muted" }, "No check has run yet."));
  at("checks").replaceChildren(...items);
}

function showMode(ready) {
  const mode = ready.mode;
  if (mode.kill_switch) pill("acting", "kill switch on", "bad");
  else if (mode.paused) pill("acting", "paused", "bad");
  else if (mode.mode === "observe") pill("acting", "observing only", "plain");
  else pill("acting", mode.randomizing ? "randomizing" : "not randomizing", mode.randomizing ? "good" : "");
  const why = mode.paused && mode.reason ? ` (${mode.reason})` : "";
  at("mode").textContent = mode.paused
    ? `Paused${why}: decisions are logged, every request is served as routed.`
    : `Mode ${mode.mode}. A pause stops randomizing at once and keeps logging.`;
  at("pause").disabled = mode.paused;
  at("resume").disabled = !mode.paused;
  return ready.problems;
}

function showAnswer(answer, estimates) {
  const decided = { decided: "good", equivalent: "good", paused: "bad", restarted: "bad" };
  pill("status", answer.status, decided[answer.status] ?? "");
  at("sentence").textContent = answer.sentence;
  at("certified").textContent = answer.certified
    ? `Certified at level ${estimates.delta}: ${answer.certified} is best, whenever one looks.`
    : `Nothing is certified yet at level ${estimates.delta}.`;
}

async function refresh() {
  try {
    const problems = showMode(await ask("/readyz"));
    const paths = ["estimates", "recommendation", "checks", "budget", "forecast"].map((name) => `/v1/${name}`);
    const [estimates, answer, checks, budget, forecast, history] = await Promise.all(
      [...paths, "/page/history"].map((path) => ask(path)),
    );
    at("experiment").textContent = estimates.experiment;
    document.title = `${estimates.experiment} · Equipoise`;
    showAnswer(answer, estimates);
    at("forecast").textContent = forecast.state === "decided" ? "" : forecast.sentence;
    showValues(estimates);
    showHistory(history.points);
    showSpent(estimates, budget);
    showChecks(checks);
    at("foot").textContent = `${count(estimates.log_rows)} log rows, ${estimates.estimator},`
      + ` as of ${new Date(1000 * estimates.at).toLocaleTimeString()}.`;
    trouble(problems.join(" "));
    document.documentElement.dataset.shown = "yes";
  } catch (error) {
    trouble(error instanceof TypeError ? "The daemon does not answer." : error.message);
  }
}

function trouble(text) {
  at("trouble").textContent = text;
  at("trouble").hidden = !text;
}

async function control(path) {
  try {
    const body = JSON.stringify({ reason: at("reason").value });
    const headers = { "Content-Type": "application/json" };
    await ask(path, { method: "POST", body, headers });
    at("said").textContent = path.endsWith("pause") ? "Paused." : "Resumed.";
  } catch (error) {
    at("said").textContent = error.message;
  }
  await refresh();
}

at("pause").addEventListener("click", () => control("/v1/pause"));
at("resume").addEventListener("click", () => control("/v1/resume"));
at("token").addEventListener("change", refresh);
at("control").addEventListener("submit", (event) => event.preventDefault());
setInterval(() => document.hidden || refresh(), EVERY_MS);
document.addEventListener("visibilitychange", () => document.hidden || refresh());
refresh();
