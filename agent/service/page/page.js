"use strict";
// What is asked of the daemon, and where its answers go. Sentences are the daemon's own. Everything
// that came from somebody goes through textContent or an attribute, never through HTML. The token a
// user enters lives in the input field of this tab and nowhere else.

const EVERY_MS = 5000;
const ARMED_MS = 10000;
// The page may lie under a path of a proxy. Absolute, for it may have been opened with a name and a
// password in its address.
const BASE = location.origin + location.pathname.replace(/\/[^/]*$/, "");

const at = (id) => document.getElementById(id);

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  const token = at("token").value;
  if (token) headers.Authorization = `Bearer ${token}`;
  const response = await fetch(BASE + path, { ...options, headers, cache: "no-store" });
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

function show(id, text) {
  at(id).textContent = text;
  at(id).hidden = !text;
}

function showAnswer(answer) {
  at("pills").replaceChildren(...answer.pills.flatMap((pill) =>
    [element("span", { class: `pill ${pill.kind === "watch" ? "" : pill.kind}` }, pill.text), " "]));
  show("certified", answer.certified_sentence);
  show("estimate", answer.estimate_sentence);
  show("outlook", answer.outlook_sentence);
  show("mode", answer.activity_sentence);
}

function showMode(mode) {
  at("end").disabled = Boolean(mode.ended);
  at("pause").disabled = mode.paused;
  at("resume").disabled = !mode.paused;
}

function comparisonsKey(answer) {
  const parts = [element("i", { class: "certain" }),
    ` certified ends${answer.about ? `, ${answer.about}` : ""}: all of them together are wrong in at most ${answer.delta} of such experiments,`
      + " whenever one looks ", element("i", { class: "zero" }), " no difference"];
  if (answer.epsilon > 0) {
    parts.push(" ", element("i", { class: "alike" }), ` too small to matter (ε = ${answer.epsilon})`);
  }
  return parts;
}

function showComparisons(estimates) {
  const { comparisons, epsilon, reward_range: span } = estimates;
  if (!comparisons.length) {
    const none = "No model has a value yet, so there is nothing to compare.";
    at("comparisons").replaceChildren(element("p", { class: "muted" }, none));
    at("comparisons-key").replaceChildren();
    return;
  }
  drawComparisons(at("comparisons"), { comparisons, epsilon, span });
  at("comparisons-key").replaceChildren(...comparisonsKey(estimates));
}

function showHistory(points, models) {
  const places = models.flatMap((each, place) => (each.compared ? [place] : []));
  const drawn = drawHistory(at("history"), points, places);
  if (!drawn) {
    const none = "Nothing to draw: no reward of a randomized request has come since.";
    at("history").replaceChildren(element("p", { class: "muted" }, none));
  }
  at("history-key").replaceChildren(
    ...(drawn ? [...places.flatMap((place) =>
      [element("i", { class: `estimate ${colour(place)}` }), ` ${models[place].model} `]),
      element("i", { class: "routing" }), " today's routing; below: randomized requests made, and when"] : []),
  );
}

function showSpent(estimates, budget, eras) {
  const compared = estimates.models.filter((each) => each.compared);
  const total = compared.reduce((sum, each) => sum + each.era_draws, 0);
  const of = eras.length > 1 ? ` of era ${estimates.era}` : "";
  at("spent").replaceChildren(
    ...(total ? compared : []).map((each) =>
      bar(each.model, each.era_draws, total, colour(estimates.models.indexOf(each)))),
    element("p", { class: "muted" }, `${count(total)} randomized requests${of} whose reward came or whose`
      + ` window ended; ${count(estimates.randomized)} randomized in all among`
      + ` ${count(estimates.decisions)}. ${estimates.watermark.sentence}`),
  );
  showBudget(budget);
}

function showBudget(budget) {
  const limits = budget.limits.map((each) =>
    bar(each.resource, each.spent ?? 0, each.limit, "c5", each.spent === null ? "unknown" : ""));
  const left = budget.left === null ? `No limit of requests; ${count(budget.randomized)} spent.`
    : `${count(budget.left)} of ${count(budget.requests)} requests are left.`;
  at("budget").replaceChildren(
    ...limits,
    element("p", { class: "muted" }, left,
      budget.after_decision ? ` After a decision: ${budget.after_decision}.` : ""),
    ...spentTable(budget.spent),
  );
}

const amount = (value, text) => (value === null ? "unknown" : text(value));
const money = (value) => signed(value.toFixed(2), value);
const gain = (each) => (each.gained === null || each.gained_error === null ? "unknown"
  : `${signed(each.gained.toFixed(1), each.gained)} ± ${(NORMAL_95 * each.gained_error).toFixed(1)}`);

// What randomizing has cost, of each model and in all.
function spentTable(spent) {
  const heads = ["", "requests", "USD", "extra USD", "rewards gained"];
  const line = (name, each) => element("tr", {}, ...[
    name, count(each.requests), amount(each.usd, money), amount(each.extra_usd, money), gain(each),
  ].map((text, index) => element(index ? "td" : "th", index ? {} : { scope: "row" }, text)));
  const table = element("table", {},
    element("thead", {}, element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, ...spent.models.map((each) => line(each.model, each)), line("in all", spent)));
  const by = spent.family === null ? "" : ` by ${spent.family}`;
  return [
    element("h3", {}, "Spent so far"),
    element("div", { class: "wide-table", tabindex: 0 }, table),
    element("p", { class: "muted" }, "Extra: more than today's routing would have cost. Gained: against"
      + ` today's routing, estimated${by}, 95%, not certified. All eras, at the prices known now.`),
  ];
}

const KINDS = { ok: "good", alarm: "bad", watch: "", unknown: "plain" };

function showChecks(checks) {
  const items = checks.checks.map((check) =>
    element("li", {}, element("span", { class: `pill ${KINDS[check.status] ?? ""}` }, check.status),
      " ", element("b", {}, check.name), " ", check.sentence));
  if (!items.length) items.push(element("li", { class: "muted" }, "No check has run yet."));
  at("checks").replaceChildren(...items);
}

function showEras(eras, span) {
  at("eras-section").hidden = eras.length < 2;
  const open = new Set([...document.querySelectorAll("#eras details[open]")].map((each) => each.dataset.era));
  at("eras").replaceChildren();
  for (const era of [...eras].reverse()) {
    const times = era.ended_at === null
      ? `since ${moment(era.opened_at, true)}`
      : `${moment(era.opened_at, true)} to ${moment(era.ended_at, true)}`;
    const answer = era.answer;
    const entry = element("article", {},
      element("h3", {}, `Era ${era.era} `, element("span", { class: "muted" }, times)),
      element("p", { class: "muted" }, `Compares ${era.compared.join(", ")}. Opened: ${era.reason}`));
    if (era.ended_at !== null) {
      const none = "What was certified of it was not kept.";
      entry.append(element("p", answer ? { class: "answer" } : { class: "muted" }, answer ? answer.sentence : none));
      entry.append(element("p", { class: "muted" }, `Ended: ${era.ended_reason}`));
    }
    at("eras").append(entry);
    if (!answer || !answer.comparisons.length) continue;
    const figure = element("div");
    const details = element("details", { "data-era": era.era },
      element("summary", {}, `Certified differences, ${count(answer.randomized)} randomized requests`),
      figure, element("p", { class: "muted key" }, ...comparisonsKey(answer)));
    details.open = open.has(String(era.era));
    entry.append(details);
    const draw = () => details.open && drawComparisons(figure, { ...answer, span });
    details.addEventListener("toggle", draw);
    draw();
  }
}

let last = null;

function draw() {
  const { estimates, budget, checks, history, eras } = last;
  adoptRange(estimates.reward_range);
  drawValues(at("values"), estimates);
  show("rating", estimates.rating_sentence);
  showComparisons(estimates);
  showHistory(history.points, estimates.models);
  showSpent(estimates, budget, eras.eras);
  showChecks(checks);
  showEras(eras.eras, estimates.reward_range);
}

async function refresh() {
  try {
    const ready = await ask("/readyz");
    if (ready.mode) showMode(ready.mode);  // a decider's readiness is its own
    trouble(ready.problems.join(" "));
    const names = ["estimates", "recommendation", "checks", "budget", "eras"];
    const [estimates, answer, checks, budget, eras, history] = await Promise.all(
      [...names.map((name) => `/v1/${name}`), "/page/history"].map((path) => ask(path)),
    );
    last = { estimates, budget, checks, history, eras };
    at("experiment").textContent = estimates.experiment;
    document.title = `${estimates.experiment} · Equipoise`;
    showAnswer(answer);
    draw();
    at("foot").textContent = `${count(estimates.log_rows)} log rows, ${estimates.estimator},`
      + ` as of ${moment(estimates.at, !today(estimates.at))}.`;
    document.documentElement.dataset.shown = "yes";
  } catch (error) {
    trouble(error instanceof TypeError ? "The daemon does not answer." : error.message);
  }
}

function trouble(text) {
  show("trouble", text);
}

const DONE = { "/v1/pause": "Paused.", "/v1/resume": "Resumed.", "/v1/end": "Ended." };

async function control(path) {
  try {
    const body = JSON.stringify({ reason: at("reason").value });
    const headers = { "Content-Type": "application/json" };
    await ask(path, { method: "POST", body, headers });
    at("said").textContent = DONE[path];
  } catch (error) {
    at("said").textContent = error.message;
  }
  await refresh();
}

// Twice, for it is meant to last.
async function endAfterConfirmation() {
  const button = at("end");
  if (button.dataset.armed) {
    disarm();
    await control("/v1/end");
    return;
  }
  button.dataset.armed = setTimeout(disarm, ARMED_MS);
  button.textContent = "Yes, end it";
  at("said").textContent = "Nothing will be randomized any more, and the action above is kept as the"
    + " answer. Press the button again to end the experiment.";
}

function disarm() {
  clearTimeout(Number(at("end").dataset.armed));
  delete at("end").dataset.armed;
  at("end").textContent = "End…";
}

at("pause").addEventListener("click", () => control("/v1/pause"));
at("resume").addEventListener("click", () => control("/v1/resume"));
at("end").addEventListener("click", endAfterConfirmation);
at("token").addEventListener("change", refresh);
at("control").addEventListener("submit", (event) => event.preventDefault());
window.addEventListener("resize", () => last && draw());
setInterval(() => document.hidden || refresh(), EVERY_MS);
document.addEventListener("visibilitychange", () => document.hidden || refresh());
refresh();
