// Draws a figure when it comes into view, and again when the colour scheme changes.
"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const configuration = { displayModeBar: false, responsive: true };

  // "--name" stands for the value of that CSS variable.
  function coloured(value, style) {
    if (typeof value === "string") return value.startsWith("--") ? style.getPropertyValue(value).trim() : value;
    if (Array.isArray(value)) return value.map((item) => coloured(item, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, coloured(item, style)]));
    }
    return value;
  }

  async function draw(element) {
    const style = getComputedStyle(document.documentElement);
    const figure = coloured(figures[element.dataset.figure], style);
    // On a narrow window long names of rows leave no room for the rest.
    if (element.dataset.narrow && element.clientWidth < 520) {
      const names = JSON.parse(element.dataset.narrow);
      figure.data[0].y = figure.data[0].y.map((name) => names[name]);
      figure.layout.yaxis.tickfont = { size: 9 };
    }
    element.dataset.state = "drawing";
    await Plotly.react(element, figure.data, figure.layout, configuration);
    element.dataset.state = "drawn";
  }

  const plots = [...document.querySelectorAll(".plot")];
  const watcher = new IntersectionObserver(
    (seen) => {
      for (const { target, isIntersecting } of seen) {
        if (isIntersecting) {
          watcher.unobserve(target);
          draw(target);
        }
      }
    },
    { rootMargin: "300px" },
  );
  for (const plot of plots) watcher.observe(plot);

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const plot of plots) if (plot.dataset.state) draw(plot);
  });

  // Paper has no folded sections.
  addEventListener("beforeprint", () => {
    for (const section of document.querySelectorAll("details")) section.open = true;
    for (const plot of plots) if (!plot.dataset.state) draw(plot);
  });

  function openTarget() {
    const section = location.hash && document.querySelector(`details${CSS.escape(location.hash).replace("\\#", "#")}`);
    if (section) section.open = true;
  }
  addEventListener("hashchange", openTarget);
  openTarget();
})();
