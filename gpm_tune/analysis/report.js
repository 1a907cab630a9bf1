"use strict";
// Draws what the page holds as data. Colours of text and grid are in the style sheet, which knows dark and print.
const dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom"; // a finger scrolls the page
const figures = [...document.querySelectorAll(".plot")];
for (const figure of figures) {
  const { data, layout } = JSON.parse(figure.querySelector("script").textContent);
  const canvas = figure.querySelector(".canvas");
  Plotly.newPlot(canvas, data, { ...layout, dragmode }, { responsive: true, displayModeBar: false });
}
// A printer has another width than the screen.
const resize = (width) => () => {
  for (const figure of figures) Plotly.relayout(figure.querySelector(".canvas"), width ? { width } : { autosize: true });
};
addEventListener("beforeprint", resize(640));
addEventListener("afterprint", resize());
