"use strict";
// Sorting and filtering of what the page already shows; without this script all of it is there.
(() => {
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    const text = "v" in cell.dataset ? cell.dataset.v : cell.textContent.trim();
    const number = parseFloat(text.replace(/,/g, "").replace("−", "-").replace("<", ""));
    return { text, number, empty: text === "" || text === "–" };
  };

  const compare = (a, b, numeric, sign) => {
    if (a.empty || b.empty) return a.empty - b.empty; // what is not known stays below
    if (numeric) return sign * (a.number - b.number);
    return sign * a.text.localeCompare(b.text, undefined, { numeric: true });
  };

  const sort = (table, header) => {
    const column = header.cellIndex;
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => ({ row, value: valueOf(row, column) }));
    const numeric = rows.every(({ value }) => value.empty || !Number.isNaN(value.number)) && header.classList.contains("num");
    const before = header.getAttribute("aria-sort");
    const highFirst = numeric && !/^(rank|p|p seeds|seed|meta-step)$/.test(header.textContent.trim());
    const rising = before === "none" ? !highFirst : before === "descending";
    rows.sort((a, b) => compare(a.value, b.value, numeric, rising ? 1 : -1));
    body.append(...rows.map(({ row }) => row));
    for (const other of table.tHead.querySelectorAll("th")) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", rising ? "ascending" : "descending");
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    if (table.tBodies[0].rows.length < 2) continue;
    for (const header of table.tHead.querySelectorAll("th")) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...header.childNodes);
      header.append(button);
      header.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => sort(table, header));
    }
  }

  const form = document.getElementById("filters");
  const status = form.querySelector(".status");
  const count = (shown, all, noun) => `${shown} of ${all} ${noun}${all === 1 ? "" : "s"}`;
  const filter = () => {
    const wanted = Object.fromEntries(new FormData(form));
    const learner = (wanted.learner || "").trim().toLowerCase();
    const tally = { tables: 0, allTables: 0, rows: 0, allRows: 0 };
    for (const place of document.querySelectorAll(".place")) {
      let any = false;
      for (const standing of place.querySelectorAll(".standing")) {
        const fits = ["place", "scenario", "threat"].every((name) => !wanted[name] || standing.dataset[name] === wanted[name]);
        let rows = 0;
        for (const row of standing.querySelector("tbody").rows) {
          const named = row.querySelector("th").textContent.toLowerCase().includes(learner);
          row.hidden = !named;
          rows += named;
          tally.allRows += 1;
        }
        standing.hidden = !(fits && rows);
        any ||= !standing.hidden;
        tally.allTables += 1;
        tally.tables += !standing.hidden;
        tally.rows += standing.hidden ? 0 : rows;
      }
      place.hidden = !any;
    }
    const told = `${count(tally.tables, tally.allTables, "table")}, ${count(tally.rows, tally.allRows, "row")}`;
    status.textContent = tally.tables ? `Shown: ${told}.` : "Nothing fits; “Show all” brings everything back.";
  };
  form.hidden = false;
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(filter));
  filter();

  // A link to a part that is folded away, or filtered out, shows it.
  const reveal = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
    if (target.closest("[hidden]")) form.reset();
  };
  addEventListener("hashchange", reveal);
  reveal();
})();
