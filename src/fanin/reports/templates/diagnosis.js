"use strict";
// The table holds every number; the charts are read by place. Without this script links lead to the rows.
(() => {
  const charts = document.getElementById("charts");
  const readout = document.getElementById("readout");
  const table = document.getElementById("layers");
  const box = document.getElementById("box");
  const count = Number(charts.dataset.count);
  const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  const rows = table.tBodies[0].rows;
  const links = new Map();
  let chosen = -1;
  let marked = [];

  for (const link of document.querySelectorAll('.findings a[href^="#L"]')) {
    const place = Number(link.hash.slice(2));
    links.set(place, [...(links.get(place) || []), link.closest("li")]);
  }

  function tell(place) {
    readout.replaceChildren();
    if (place < 0) {
      readout.textContent = readout.dataset.hint;
      return;
    }
    const cells = [...rows[place].cells].map((cell) => cell.textContent.trim());
    const name = document.createElement("b");
    name.textContent = cells[0];
    const rest = cells.slice(3).map((text, index) => text && `${heads[index + 3]} ${text}`);
    readout.append(name, ` ${cells[1]} ${cells[2]}: ${rest.filter(Boolean).join(" · ")}`);
  }

  function choose(place) {
    for (const element of marked) element.classList.remove("here");
    chosen = Math.min(Math.max(place, 0), count - 1);
    marked = [rows[chosen], ...(links.get(chosen) || [])];
    for (const element of marked) element.classList.add("here");
    charts.style.setProperty("--at", chosen / count);
    charts.style.setProperty("--wide", 1 / count);
    charts.classList.add("on");
    const row = rows[chosen];
    box.scrollTop = row.offsetTop - (box.clientHeight - row.offsetHeight) / 2;
    tell(chosen);
  }

  function show() {
    const frame = charts.getBoundingClientRect();
    if (frame.top < 0 || frame.top > innerHeight / 2) readout.scrollIntoView({ block: "start" });
  }

  function placeAt(event) {
    const plot = event.target.closest(".plot");
    if (!plot) return -1;
    const frame = plot.getBoundingClientRect();
    return Math.min(Math.max(Math.floor(((event.clientX - frame.left) / frame.width) * count), 0), count - 1);
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#L"]');
    if (!link) return;
    event.preventDefault();
    choose(Number(link.hash.slice(2)));
    show();
  });
  charts.addEventListener("click", (event) => placeAt(event) >= 0 && choose(placeAt(event)));
  charts.addEventListener("pointermove", (event) => tell(placeAt(event) >= 0 ? placeAt(event) : chosen));
  charts.addEventListener("pointerleave", () => tell(chosen));
  table.tBodies[0].addEventListener("click", (event) => {
    if (!event.target.closest("a")) choose(event.target.closest("tr").sectionRowIndex);
  });
  charts.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -count, End: count };
    if (!(event.key in steps)) return;
    event.preventDefault();
    choose(chosen + steps[event.key]);
  });

  document.documentElement.classList.add("live");
  readout.hidden = false;
  tell(-1);
  if (/^#L\d+$/.test(location.hash)) choose(Number(location.hash.slice(2)));
})();
