"use strict";
// Draws the figures in the colours of page.css, again when the colour scheme changes, and in
// light colours at the width of the paper before printing.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const root = document.documentElement;
  const options = { displayModeBar: false };
  const colourKeys = new Set([
    "color", "fillcolor", "gridcolor", "linecolor", "zerolinecolor",
    "bgcolor", "bordercolor", "paper_bgcolor", "plot_bgcolor", "colorscale",
  ]);
  const printWidth = { single: 690, wide: 340, "": 220 };
  root.dataset.drawn = "0";
  root.dataset.errors = "";
  window.addEventListener("error", (event) => { root.dataset.errors += event.message + "; "; });

  // "@name/0.2" is the CSS variable --name, at an opacity.
  const colour = (value, style) => {
    const [name, opacity] = value.slice(1).split("/");
    const found = style.getPropertyValue("--" + name).trim();
    if (opacity === undefined) return found;
    const [red, green, blue] = [1, 3, 5].map((at) => parseInt(found.slice(at, at + 2), 16));
    return `rgba(${red},${green},${blue},${opacity})`;
  };

  const coloured = (value, style, inColour = false) => {
    if (Array.isArray(value)) return value.map((each) => coloured(each, style, inColour));
    if (value !== null && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(
        ([key, each]) => [key, coloured(each, style, colourKeys.has(key))]));
    }
    const named = inColour && typeof value === "string" && value.startsWith("@");
    return named ? colour(value, style) : value;
  };

  // The keys of a section that are switched off hide their lines in its figures.
  const hiddenIn = (section) => new Set(section
    ? [...section.querySelectorAll('.key[aria-pressed="false"]')].map((key) => key.dataset.line)
    : []);

  // On paper two figures fit below each other; those that are tall have many rows and stay so.
  const flatter = ({ layout }) => ({ height: layout.height > 400 ? layout.height : 250 });

  const draw = (place, width) => {
    const figure = coloured(figures[place.id], getComputedStyle(root));
    const hidden = hiddenIn(place.closest("section"));
    figure.data.forEach((trace) => { trace.visible = !hidden.has(trace.name); });
    if (width) Object.assign(figure.layout, { width, autosize: false, ...flatter(figure) });
    const first = !place.dataset.drawn;
    place.dataset.drawn = "yes";
    Plotly.react(place, figure.data, figure.layout, options);
    if (!first) return;
    root.dataset.drawn = String(Number(root.dataset.drawn) + 1);
    widths.observe(place);
  };

  // Follow the width of the page, except on paper, where widths are given.
  const widths = new ResizeObserver((changes) => changes.forEach(({ target }) => {
    if (visible(target) && !root.dataset.theme) Plotly.Plots.resize(target);
  }));

  // What is folded away has no width yet; it is drawn when it is opened.
  const visible = (place) => place.closest("details:not([open])") === null;
  const places = () => [...document.querySelectorAll(".plot")];
  const drawVisible = () => places().filter(visible).forEach((place) => draw(place));

  const redraw = (section) => [...section.querySelectorAll(".plot")]
    .filter((place) => place.dataset.drawn && visible(place)).forEach((place) => draw(place));
  document.querySelectorAll("button.key").forEach((key) => {
    const section = key.closest("section");
    const press = (each, on) => each.setAttribute("aria-pressed", String(on));
    key.addEventListener("click", () => {
      press(key, key.getAttribute("aria-pressed") === "false");
      redraw(section);
    });
    // Twice: this line alone, or all of them again.
    key.addEventListener("dblclick", () => {
      const others = [...section.querySelectorAll("button.key")].filter((each) => each !== key);
      const alone = others.every((each) => each.getAttribute("aria-pressed") === "false");
      others.forEach((each) => press(each, alone));
      press(key, true);
      redraw(section);
    });
  });

  const markWide = () => document.querySelectorAll(".scroll").forEach((box) => {
    box.classList.toggle("wide", box.scrollWidth > box.clientWidth + 1);
  });
  window.addEventListener("resize", markWide);
  markWide();

  document.querySelectorAll("details").forEach((fold) => fold.addEventListener("toggle", () => {
    markWide();
    places().filter((place) => visible(place) && !place.dataset.drawn).forEach((p) => draw(p));
  }));
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawVisible);
  window.addEventListener("beforeprint", () => {
    root.dataset.theme = "light";
    places().filter(visible).forEach((place) => {
      const grid = place.closest(".grid");
      const kind = grid ? [...grid.classList].find((name) => name in printWidth) || "" : null;
      draw(place, kind === null ? 690 : printWidth[kind]);
    });
  });
  window.addEventListener("afterprint", () => {
    delete root.dataset.theme;
    drawVisible();
  });
  drawVisible();
})();
