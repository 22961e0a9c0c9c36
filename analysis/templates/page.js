"use strict";
// Sorting and filtering of tables, opening what a link points into. Without it nothing is missing.
const number = (text) => {
  const found = text.replaceAll(",", "").replace("−", "-").match(/^[^\d-]*([+-]?\d+(\.\d+)?)/);
  return found ? Number(found[1]) : NaN;
};

// Names with the numbers in them in order (temp-0.35 before temp-0.5); or the cells' numbers.
const byName = (a, b) => {
  const [x, y] = [a, b].map((name) => name.split(/(\d+(?:\.\d+)?)/));
  const at = x.findIndex((part, i) => part !== y[i]);
  if (at < 0 || y[at] === undefined) return x.length - y.length;
  return at % 2 ? Number(x[at]) - Number(y[at]) : x[at].localeCompare(y[at]);
};
const byNumber = (a, b) => number(a) - number(b);

const sortable = (table, head, column) => {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "sort";
  button.setAttribute("aria-label", `sort by ${head.textContent.trim()}`);
  head.insertBefore(button, head.querySelector("small"));
  button.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = table.tBodies[0];
    const cell = (row) => row.cells[column].dataset.value;
    const numbers = [...body.rows].some((row) => column && !Number.isNaN(number(cell(row))));
    const known = (row) => !numbers || !Number.isNaN(number(cell(row)));
    const rows = [...body.rows].sort((a, b) => {
      if (known(a) !== known(b)) return known(a) ? -1 : 1;  // what has no value stays last
      const order = (numbers && known(a) ? byNumber : byName)(cell(a), cell(b));
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
