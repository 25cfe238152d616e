"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);

  const draw = () => {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    const [ink, muted, line] = [color("--ink"), color("--muted"), color("--line")];
    const config = {
      font: "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
      view: { stroke: null },
      axis: { labelColor: muted, titleColor: muted, titleFontWeight: 500, gridColor: line, domainColor: line, tickColor: line, labelFontSize: 11 },
      legend: { labelColor: muted, titleColor: muted, titleFontWeight: 500, labelFontSize: 11 },
      text: { color: ink },
    };
    const actions = { export: true, source: false, compiled: false, editor: false };
    for (const [place, spec] of Object.entries(charts)) {
      vegaEmbed(`#${place}`, spec, { mode: "vega-lite", renderer: "svg", actions, config }).catch((error) => {
        document.getElementById(place).textContent = `This chart cannot be drawn: ${error.message}`;
      });
    }
  };

  const value = (row, column) => {
    const cell = row.cells[column];
    const number = cell.dataset.value;
    return number === undefined ? cell.textContent : number === "" ? NaN : Number(number);
  };

  const compare = (a, b) => {
    if (typeof a === "string") return a.localeCompare(b, "en", { numeric: true });
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
    return a - b;
  };

  const sortable = (table) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0];
      const rows = [...body.rows].map((row) => [value(row, column), row]);
      const empty = ([key]) => Number.isNaN(key);
      rows.sort((a, b) => (empty(a) || empty(b) ? compare(a[0], b[0]) : (down ? -1 : 1) * compare(a[0], b[0])));
      body.append(...rows.map(([, row]) => row));
    }));
  };

  const searchable = (field) => {
    const rows = [...document.getElementById(field.dataset.table).tBodies[0].rows];
    field.addEventListener("input", () => {
      const wanted = field.value.toLowerCase();
      rows.forEach((row) => { row.hidden = !row.textContent.toLowerCase().includes(wanted); });
    });
  };

  document.querySelectorAll("table.sortable").forEach(sortable);
  document.querySelectorAll("input[data-table]").forEach(searchable);
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
