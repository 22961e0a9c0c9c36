"use strict";
// Sorting and filtering of tables, and opening what a link points into. Without it nothing is missing.
const number = (text) => {
  const found = text.replaceAll(",", "").replace("−", "-").match(/^[^\d-]*([+-]?\d+(\.\d+)?)/);
  return found ? Number(found[1]) : NaN;
};

const inOrder = (a, b) => {
  const [x, y] = [number(a), number(b)];
  if (Number.isNaN(x) || Number.isNaN(y)) {
    if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
    return a.localeCompare(b);
  }
  return x - y;
};

const sortable = (table, head, column) => {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "sort";
  button.setAttribute("aria-label", `sort by ${head.textContent.trim()}`);
  head.append(button);
  button.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = table.tBodies[0];
    const cell = (row) => row.cells[column].dataset.value;
    const known = (row) => column === 0 || !Number.isNaN(number(cell(row)));
    const rows = [...body.rows].sort((a, b) => {
      if (known(a) !== known(b)) return known(a) ? -1 : 1;  // what has no value stays last
      const order = column === 0 ? cell(a).localeCompare(cell(b), "en", { numeric: true })
        : inOrder(cell(a), cell(b));
      return down ? -order : order;
    });
    body.append(...rows);
  });
};

const filterable = (table) => {
  const label = document.createElement("label");
  const input = document.createElement("input");
  const count = document.createElement("output");
  input.type = "search";
  label.className = "filter";
  label.append("Filter rows ", input, " ", count);
  table.parentElement.before(label);
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase();
    const rows = [...table.tBodies[0].rows];
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    const shown = rows.filter((row) => !row.hidden).length;
    count.textContent = wanted ? `${shown} of ${rows.length}` : "";
  });
};

for (const table of document.querySelectorAll("table")) {
  const rows = table.tBodies[0].rows.length;
  if (rows > 1) [...table.tHead.rows[0].cells].forEach((head, i) => sortable(table, head, i));
  if (rows > 8) filterable(table);
}

const open = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  if (target) target.scrollIntoView();
};
addEventListener("hashchange", open);
open();
